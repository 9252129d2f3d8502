//! What work that outsiders choose may take: threads of the [`Crew`], bytes of
//! the [`Budget`]. The sizes themselves are in [`limits`].

mod budget;
mod crew;
pub mod frames;
mod json;
mod line;
mod sweeper;
mod turns;

pub use budget::{Account, Budget, Charge, Exhausted, Held};
pub use crew::{Crew, Lane, Overloaded, give_way};
pub use json::{
    QUICK_VALUES, Weight, exact, is_quick, read_exactly, read_through, weigh, why_unread,
};
pub use line::{Place, is_free, is_little, took, turn_for};
pub use stockade_proto::limits;
pub use sweeper::swept;
pub use turns::Turns;
pub(crate) use turns::read_at_most;
