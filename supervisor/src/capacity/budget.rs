//! One number bounds the bytes that the daemon holds for others: bodies being
//! read, arguments that wait, results and streams that are not written yet.
//! Each connection and each plugin has a share of it, and a part is kept for
//! the operator.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use stockade_proto::limits;

/// The budget. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: usize,
    used: AtomicUsize,
}

/// The part that large bodies leave free: a sixteenth. A quarter of it is for what is
/// small, half of it for what plugins answer, the rest for operators alone: whoever fills
/// the budget with bodies stops neither small calls nor their results.
const RESERVE: usize = 16;
/// Who holds no more than this holds little: some dozens of small requests.
const LITTLE: usize = 512 << 10;
/// A connection's share: a quarter.
const OF_CONNECTION: usize = 4;
/// A plugin's share: a half.
const OF_PLUGIN: usize = 2;

/// There is no room for so many bytes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// Nor for as many with nothing else there.
    #[error(
        "{wanted} bytes do not fit into the share of one {whose} ({share} bytes); send less at \
         once, or raise max_buffered"
    )]
    Never {
        /// Asked for.
        wanted: usize,
        /// The share.
        share: usize,
        /// `connection`, `plugin`, `events` or `daemon`.
        whose: &'static str,
    },
    /// Others must be done first.
    #[error(
        "as many bytes wait for this {whose} as may; read what is there and try again, or raise \
         max_buffered"
    )]
    Now {
        /// `connection`, `plugin`, `events` or `daemon`.
        whose: &'static str,
    },
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(total: usize) -> Self {
        Budget(Arc::new(Inner { total, used: AtomicUsize::new(0) }))
    }

    /// An eighth of the machine's memory, but no less than it takes to work.
    pub fn usual() -> usize {
        let memory = sysinfo::System::new().map_or(0, |mut system| {
            system.refresh_memory();
            usize::try_from(system.total_memory()).unwrap_or(usize::MAX)
        });
        (memory / 8).max(limits::MIN_BUFFERED)
    }

    /// Bytes that are held now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.0.total
    }

    /// What one connection may hold.
    pub fn share_of_connection(&self) -> usize {
        self.0.total / OF_CONNECTION
    }

    /// The account of a connection.
    pub fn of_connection(&self) -> Account {
        let reserve = self.0.total / RESERVE;
        let leaves = (reserve / 4 * 3, reserve);
        self.account("connection", self.share_of_connection(), leaves, self.first())
    }

    /// The account of an operator's connection: it may use the reserve.
    pub fn of_operator(&self) -> Account {
        self.account("connection", self.share_of_connection(), (0, 0), self.first())
    }

    /// The account of a plugin.
    pub fn of_plugin(&self) -> Account {
        let least = self.0.total / RESERVE / 4;
        self.account("plugin", self.0.total / OF_PLUGIN, (least, least), self.first())
    }

    /// The account of all events that wait.
    pub fn of_events(&self) -> Account {
        let reserve = self.0.total / RESERVE;
        self.account("events", self.0.total / OF_PLUGIN, (reserve, reserve), 0)
    }

    fn first(&self) -> usize {
        limits::FIRST.min(self.0.total / 512)
    }

    fn account(
        &self,
        whose: &'static str,
        share: usize,
        leaves: (usize, usize),
        first: usize,
    ) -> Account {
        Account(Arc::new(Share {
            budget: self.clone(),
            whose,
            share,
            leaves,
            first,
            used: AtomicUsize::new(0),
        }))
    }
}

/// A share of the budget. Cheap to clone; the clones share.
#[derive(Clone, Debug)]
pub struct Account(Arc<Share>);

#[derive(Debug)]
struct Share {
    budget: Budget,
    whose: &'static str,
    share: usize,
    /// Bytes of the budget that are not for it: while it holds little, and beyond.
    leaves: (usize, usize),
    /// Bytes that are for it, whatever others hold.
    first: usize,
    used: AtomicUsize,
}

impl Share {
    /// So much can be held at all: there is always something beside it, its request at
    /// least.
    fn can_have(&self, wanted: usize) -> Result<(), Exhausted> {
        let (share, whose) = (self.share, self.whose);
        match wanted > share - (share / 64).min(limits::STEP) {
            true => Err(Exhausted::Never { wanted, share, whose }),
            false => Ok(()),
        }
    }

    fn add(&self, bytes: usize) -> Result<(), Exhausted> {
        match add(&self.used, bytes, self.share) {
            true => Ok(()),
            false => Err(Exhausted::Now { whose: self.whose }),
        }
    }
}

fn add(used: &AtomicUsize, bytes: usize, most: usize) -> bool {
    let added = used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    if added <= most {
        return true;
    }
    used.fetch_sub(bytes, Ordering::Relaxed);
    false
}

impl Account {
    /// Holds so many bytes until the charge is dropped.
    ///
    /// # Errors
    /// There is no room for them.
    pub fn charge(&self, bytes: usize) -> Result<Charge, Exhausted> {
        let mut charge = Charge { account: self.clone(), bytes: 0 };
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Bytes that are held for it now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }
}

/// Bytes that are held. Given back when it is dropped.
#[derive(Debug)]
pub struct Charge {
    account: Account,
    bytes: usize,
}

impl Charge {
    /// Holds more.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        if bytes == 0 {
            return Ok(());
        }
        let share = &self.account.0;
        // What has come of one thing stays while its rest comes.
        share.can_have(self.bytes.saturating_add(bytes))?;
        share.add(bytes)?;
        let budget = &share.budget.0;
        let used = share.used.load(Ordering::Relaxed);
        let little = used <= LITTLE.min(budget.total / 256);
        let leaves = if little { share.leaves.0 } else { share.leaves.1 };
        // However many hold a little, nobody else is refused a little.
        let most = match used <= share.first {
            true => usize::MAX,
            false => budget.total.saturating_sub(leaves),
        };
        if !add(&budget.used, bytes, most) {
            share.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Exhausted::Now { whose: "daemon" });
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Takes a part of it out.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Charge {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Charge { account: self.account.clone(), bytes }
    }

    /// Another one pays for it from now on. It is held already: the daemon needs no more
    /// room for it.
    fn move_to(&mut self, account: &Account) -> Result<(), Exhausted> {
        account.0.can_have(self.bytes)?;
        account.0.add(self.bytes)?;
        let old = std::mem::replace(&mut self.account, account.clone());
        old.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Who pays for it.
    pub fn account(&self) -> &Account {
        &self.account
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.account.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
            self.account.0.budget.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Charges that live as long as what they were made for. All are alike.
#[derive(Clone, Debug, Default)]
pub struct Held(Option<Arc<(Charge, Held)>>);

impl Held {
    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        let mut next = self.0.as_deref();
        let mut bytes = 0;
        while let Some((charge, more)) = next {
            bytes += charge.bytes;
            next = more.0.as_deref();
        }
        bytes
    }

    /// Holds a charge.
    pub fn new(charge: Charge) -> Self {
        if charge.bytes == 0 {
            return Held::default();
        }
        Held(Some(Arc::new((charge, Held::default()))))
    }

    /// The same, paid for by another one from now on. What others hold of it, too, stays
    /// as it is.
    ///
    /// # Errors
    /// It does not fit into the share of that one.
    pub fn moved_to(self, account: &Account) -> Result<Held, Exhausted> {
        let Some(held) = self.0 else { return Ok(Held::default()) };
        match Arc::try_unwrap(held) {
            Ok((mut charge, more)) => {
                charge.move_to(account)?;
                Ok(Held(Some(Arc::new((charge, more.moved_to(account)?)))))
            }
            Err(shared) => Ok(Held(Some(shared))),
        }
    }

    /// Holds another one, too.
    #[must_use]
    pub fn and(self, charge: Charge) -> Self {
        if charge.bytes == 0 {
            return self;
        }
        Held(Some(Arc::new((charge, self))))
    }
}

impl PartialEq for Held {
    fn eq(&self, _: &Held) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_reserve_hold_and_everything_comes_back() {
        let budget = Budget::new(1600);
        let (client, other) = (budget.of_connection(), budget.of_connection());
        let held = (client.charge(394).unwrap(), client.charge(6).unwrap());
        assert_eq!(client.charge(1).unwrap_err(), Exhausted::Now { whose: "connection" });
        let never = client.charge(395).unwrap_err();
        assert_eq!(never, Exhausted::Never { wanted: 395, share: 400, whose: "connection" });
        let plugin = budget.of_plugin();
        let more = (plugin.charge(788).unwrap(), other.charge(312).unwrap());
        assert_eq!(other.charge(1).unwrap_err(), Exhausted::Now { whose: "daemon" });
        // Who holds little may go on, then plugins, then operators only.
        let small = budget.of_connection().charge(1).unwrap();
        drop(plugin);
        let plugin = budget.of_plugin();
        let answer = plugin.charge(74).unwrap();
        assert_eq!(
            budget.of_connection().charge(4).unwrap_err(),
            Exhausted::Now { whose: "daemon" }
        );
        assert_eq!(plugin.charge(1).unwrap_err(), Exhausted::Now { whose: "daemon" });
        let operator = budget.of_operator().charge(25).unwrap();
        assert_eq!(budget.used(), 1600);
        drop((held, more, operator, small, answer));
        assert_eq!((budget.used(), client.used(), plugin.used()), (0, 0, 0));
    }

    #[test]
    fn many_who_hold_a_little_leave_a_little_for_everybody() {
        let budget = Budget::new(16 << 20);
        let request = limits::REQUEST + 2048;
        let held: Vec<_> =
            (0..2000).map(|_| budget.of_connection().charge(request).unwrap()).collect();
        assert!(budget.used() > budget.total());
        let client = budget.of_connection();
        let first = client.charge(request).unwrap();
        assert_eq!(client.charge(request).unwrap_err(), Exhausted::Now { whose: "daemon" });
        assert!(budget.of_plugin().charge(request).is_ok());
        assert!(budget.of_events().charge(1).is_err());
        drop((held, first));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn parts_of_a_charge_live_by_themselves() {
        let budget = Budget::new(1600);
        let account = budget.of_connection();
        let mut all = account.charge(300).unwrap();
        let part = all.split(100);
        drop(all);
        assert_eq!(budget.used(), 100);
        let held = Held::new(part).and(account.charge(50).unwrap());
        assert_eq!(held.bytes(), 150);
        let twin = held.clone();
        drop(held);
        assert_eq!(budget.used(), 150);
        drop(twin);
        assert_eq!(budget.used(), 0);
        let (plugin, client) = (budget.of_plugin(), budget.of_connection());
        let held = || Held::new(plugin.charge(300).unwrap());
        let taken = held().moved_to(&client).unwrap();
        assert_eq!((plugin.used(), client.used()), (0, 300));
        assert_eq!(held().moved_to(&client).unwrap_err(), Exhausted::Now { whose: "connection" });
        // Also when nothing is left for who asks for room.
        let bodies = [(); 3].map(|()| budget.of_connection().charge(390).unwrap());
        let last = plugin.charge(100).unwrap();
        assert!(budget.of_connection().charge(100).is_err());
        let last = Held::new(last).moved_to(&budget.of_connection()).unwrap();
        assert_eq!((plugin.used(), last.bytes()), (0, 100));
        drop((taken, bodies, last));
        assert_eq!((plugin.used(), budget.used()), (0, 0));
    }
}
