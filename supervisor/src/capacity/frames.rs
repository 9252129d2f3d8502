//! Where the frames of an HTTP/2 peer begin and end: of one that has not come to its end
//! nobody else knows yet, and many small ones are dear.

/// The bytes before the first frame.
const PREFACE: usize = 24;
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// What has begun and not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// A frame of a body.
    Body,
    /// Another frame, or headers of which more frames must follow.
    Head,
}

/// The place in the stream of frames.
#[derive(Debug)]
pub struct Frames {
    preface: usize,
    head: [u8; HEAD],
    head_read: usize,
    /// Bytes of the frame that are still to come.
    left: usize,
    /// Its headers go on with the next frame.
    goes_on: bool,
    begun: u64,
}

impl Frames {
    /// Of a client, before its preface.
    pub fn of_client() -> Self {
        Frames { preface: PREFACE, ..Frames::of_server() }
    }

    /// Of a server.
    pub fn of_server() -> Self {
        Frames { preface: 0, head: [0; HEAD], head_read: 0, left: 0, goes_on: false, begun: 0 }
    }

    /// So many have begun.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// These bytes have come.
    pub fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = match (self.preface, self.left) {
                (0, 0) => HEAD - self.head_read,
                (0, left) => left,
                (preface, _) => preface,
            };
            let (here, rest) = bytes.split_at(room.min(bytes.len()));
            bytes = rest;
            if self.preface > 0 {
                self.preface -= here.len();
            } else if self.left > 0 {
                self.left -= here.len();
            } else {
                self.head[self.head_read..][..here.len()].copy_from_slice(here);
                self.head_read += here.len();
                if self.head_read == HEAD {
                    self.begin();
                }
            }
        }
    }

    fn begin(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.head_read = 0;
        self.begun += 1;
        self.left = u32::from_be_bytes([0, high, middle, low]) as usize;
        if [HEADERS, PUSH_PROMISE, CONTINUATION].contains(&kind) {
            self.goes_on = flags & END_HEADERS == 0;
        }
    }

    /// What the peer has begun and not ended.
    pub fn open(&self) -> Option<Open> {
        if self.goes_on || self.head_read > 0 {
            return Some(Open::Head);
        }
        let [.., kind, _, _, _, _, _] = self.head;
        (self.left > 0).then_some(if kind == DATA { Open::Body } else { Open::Head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        bytes.extend(vec![7; length as usize]);
        bytes
    }

    #[test]
    fn what_has_not_ended_is_known_however_it_comes() {
        let settings = frame(4, 0, 0);
        let whole = [frame(HEADERS, END_HEADERS, 20), frame(DATA, 1, 30), frame(6, 0, 8)].concat();
        for piece in [1, 2, 8, 9, 10, 1000] {
            let mut frames = Frames::of_client();
            let bytes = [&[b'P'; PREFACE][..], &settings, &whole].concat();
            bytes.chunks(piece).for_each(|bytes| frames.read(bytes));
            assert_eq!((frames.open(), frames.begun()), (None, 4), "{piece}");
            frames.read(&frame(DATA, 0, 30)[..38]);
            assert_eq!(frames.open(), Some(Open::Body));
            frames.read(&[7]);
            assert_eq!(frames.open(), None);
            frames.read(&frame(HEADERS, 0, 3));
            assert_eq!(frames.open(), Some(Open::Head));
            frames.read(&frame(CONTINUATION, 0, 3));
            assert_eq!(frames.open(), Some(Open::Head));
            frames.read(&frame(CONTINUATION, END_HEADERS, 3));
            assert_eq!(frames.open(), None);
            frames.read(&[0]);
            assert_eq!(frames.open(), Some(Open::Head));
        }
    }
}
