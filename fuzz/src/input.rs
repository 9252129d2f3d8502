//! An input, read as a script: small numbers that choose, pieces of bytes, and sizes
//! at the bounds.

use stockade_proto::limits::{TABLE, Unit};

/// More than this is sent by no script: the machine is to be kept busy otherwise.
const MOST: u64 = 9 << 20;

/// What is left of it.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Input(data)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// 0 at the end.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// One of so many.
    pub fn choice(&mut self, of: usize) -> usize {
        usize::from(self.byte()) % of.max(1)
    }

    /// A piece of up to 4 KiB, its length before it.
    pub fn piece(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()) << (self.byte() % 5);
        let (piece, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        piece
    }

    /// A piece as text.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.piece()).into_owned()
    }

    /// A size at one of the bounds of `proto/src/limits.rs`: one less, itself, one more.
    pub fn bound(&mut self) -> usize {
        let bounds: Vec<u64> = TABLE
            .iter()
            .filter(|bound| bound.unit != Unit::Time && bound.value <= MOST)
            .map(|bound| bound.value)
            .collect();
        let value = bounds[self.choice(bounds.len())];
        (value + u64::from(self.byte() % 3)).saturating_sub(1) as usize
    }

    /// A piece, or now and then one byte repeated to a bound.
    pub fn bytes(&mut self) -> Vec<u8> {
        if self.is_empty() {
            return Vec::new();
        }
        match self.byte() {
            0..=31 => {
                let byte = self.byte();
                vec![byte; self.bound()]
            }
            _ => self.piece().to_vec(),
        }
    }
}
