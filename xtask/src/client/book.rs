//! The client's books: what was sent, what was acknowledged, and what the store must therefore hold.
//!
//! At most one request for a key is under way, so the order of a key's writes is known. A key counts
//! the writes it has taken, and a write is not idempotent: so the counter alone shows that one was
//! lost or applied twice, and the value shows that the last one is there. Together they account for
//! every acknowledged write, not only for the last of each key.

use std::collections::HashMap;

use super::wire::{Operation, Reply, Status, written_by};

/// How many complaints are kept in words; all are counted.
const COMPLAINTS: usize = 20;

/// The books.
pub(crate) struct Book {
    keys: Vec<Key>,
    under_way: HashMap<u64, Sent>,
    given_up: HashMap<u64, Sent>,
    next_sequence: u64,
    /// Sums.
    pub(crate) totals: Totals,
    /// The first few things that were wrong, in words.
    pub(crate) complaints: Vec<String>,
}

/// What the books add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Requests sent.
    pub(crate) sent: u64,
    /// Writes among them.
    pub(crate) sent_writes: u64,
    /// Requests that were answered in time.
    pub(crate) answered: u64,
    /// Writes among them that were acknowledged.
    pub(crate) acked_writes: u64,
    /// Requests that were not answered in time.
    pub(crate) unanswered: u64,
    /// Answers that came after their request was given up.
    pub(crate) late: u64,
    /// Answers to a request that was answered already.
    pub(crate) duplicate_replies: u64,
    /// Requests that the server refused.
    pub(crate) refused: u64,
    /// Datagrams that are no reply to anything asked.
    pub(crate) strange: u64,
    /// Reads that returned what no write of this client left there.
    pub(crate) wrong_values: u64,
}

#[derive(Clone, Default)]
struct Key {
    busy: bool,
    issued: u64,
    acked: u64,
    last_acked: Option<u64>,
    /// Writes after the last acknowledged one that were never answered: they may have happened.
    uncertain: Vec<u64>,
    /// The most by which the key's counter ever exceeded the writes that were sent.
    excess: u64,
    /// The most by which it ever fell short of those acknowledged.
    deficit: u64,
    /// The value of the last acknowledged write was not there.
    stale: bool,
}

#[derive(Clone, Copy)]
struct Sent {
    operation: Operation,
    key: u32,
    at: u64,
}

impl Book {
    /// Books for the keys `0..keys`, none of which was ever written.
    pub(crate) fn new(keys: u32) -> Self {
        Self {
            keys: vec![Key::default(); keys as usize],
            under_way: HashMap::new(),
            given_up: HashMap::new(),
            next_sequence: 1,
            totals: Totals::default(),
            complaints: Vec::new(),
        }
    }

    /// How many requests are under way.
    pub(crate) fn outstanding(&self) -> usize {
        self.under_way.len()
    }

    /// Whether a request for `key` is under way.
    pub(crate) fn is_busy(&self, key: u32) -> bool {
        self.keys.get(key as usize).is_none_or(|key| key.busy)
    }

    /// All keys that a write was ever sent to.
    pub(crate) fn written_keys(&self) -> Vec<u32> {
        (0u32..)
            .zip(&self.keys)
            .filter(|(_, key)| key.issued > 0)
            .map(|(number, _)| number)
            .collect()
    }

    /// Notes that a request is about to be sent and returns its number.
    pub(crate) fn issue(&mut self, operation: Operation, key: u32, now: u64) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.totals.sent += 1;
        let state = &mut self.keys[key as usize];
        state.busy = true;
        if operation == Operation::Write {
            self.totals.sent_writes += 1;
            state.issued += 1;
        }
        let sent = Sent {
            operation,
            key,
            at: now,
        };
        self.under_way.insert(sequence, sent);
        sequence
    }

    /// Gives up every request that was sent before `limit`.
    pub(crate) fn give_up(&mut self, limit: u64) {
        let overdue: Vec<u64> = self
            .under_way
            .iter()
            .filter(|(_, sent)| sent.at < limit)
            .map(|(&sequence, _)| sequence)
            .collect();
        for sequence in overdue {
            let Some(sent) = self.under_way.remove(&sequence) else {
                continue;
            };
            self.totals.unanswered += 1;
            let key = &mut self.keys[sent.key as usize];
            key.busy = false;
            if sent.operation == Operation::Write {
                key.uncertain.push(sequence);
            }
            self.given_up.insert(sequence, sent);
            self.complain(format!(
                "request {sequence} ({:?} of key {}) was never answered",
                sent.operation, sent.key
            ));
        }
    }

    /// Judges a reply.
    pub(crate) fn judge(&mut self, reply: &Reply) {
        let Some(&sent) = self.under_way.get(&reply.sequence) else {
            if self.given_up.remove(&reply.sequence).is_some() {
                self.totals.late += 1;
            } else if reply.sequence != 0 && reply.sequence < self.next_sequence {
                self.totals.duplicate_replies += 1;
                self.complain(format!("request {} was answered again", reply.sequence));
            } else {
                self.strange(format!("request {} was never sent", reply.sequence));
            }
            return;
        };
        if reply.operation != sent.operation || reply.key != sent.key {
            self.strange(format!(
                "request {} was {:?} of key {}, and the reply says {:?} of key {}",
                reply.sequence, sent.operation, sent.key, reply.operation, reply.key
            ));
            return;
        }
        self.under_way.remove(&reply.sequence);
        self.totals.answered += 1;
        self.keys[sent.key as usize].busy = false;
        match (sent.operation, reply.status) {
            (_, Status::Refused) => {
                self.totals.refused += 1;
                if sent.operation == Operation::Write {
                    self.keys[sent.key as usize].uncertain.push(reply.sequence);
                }
                self.complain(format!("request {} was refused", reply.sequence));
            }
            (Operation::Write, Status::Ok) => {
                self.totals.acked_writes += 1;
                let key = &mut self.keys[sent.key as usize];
                key.acked += 1;
                key.last_acked = Some(reply.sequence);
                key.uncertain.clear();
                self.count(sent.key, reply.writes);
            }
            (Operation::Write, Status::NotFound) => {
                self.strange(format!(
                    "write {} was answered with `not found`",
                    reply.sequence
                ));
            }
            (Operation::Read, status) => self.judge_read(sent.key, status, reply),
        }
    }

    fn judge_read(&mut self, number: u32, status: Status, reply: &Reply) {
        let key = &self.keys[number as usize];
        let found = match status {
            Status::Ok => match written_by(number, &reply.value) {
                Some(sequence) => Some(sequence),
                None => {
                    self.totals.wrong_values += 1;
                    self.complain(format!("key {number} holds bytes that no write put there"));
                    return;
                }
            },
            _ => None,
        };
        let expected = match found {
            Some(sequence) => key.last_acked == Some(sequence) || key.uncertain.contains(&sequence),
            None => key.last_acked.is_none(),
        };
        let writes = reply.writes;
        if !expected {
            let last = key.last_acked;
            self.keys[number as usize].stale = true;
            self.complain(format!(
                "key {number} holds the value of write {found:?}, not of write {last:?}"
            ));
        }
        self.count(number, writes);
    }

    /// Compares a key's counter with the books.
    fn count(&mut self, number: u32, writes: u64) {
        let key = &mut self.keys[number as usize];
        let excess = writes.saturating_sub(key.issued);
        let deficit = key.acked.saturating_sub(writes);
        let worse = excess > key.excess || deficit > key.deficit;
        key.excess = key.excess.max(excess);
        key.deficit = key.deficit.max(deficit);
        if worse {
            let (issued, acked) = (key.issued, key.acked);
            self.complain(format!(
                "key {number} counts {writes} writes; {issued} were sent and {acked} acknowledged"
            ));
        }
    }

    /// Notes a datagram that makes no sense.
    pub(crate) fn strange(&mut self, what: String) {
        self.totals.strange += 1;
        self.complain(what);
    }

    fn complain(&mut self, what: String) {
        if self.complaints.len() < COMPLAINTS {
            self.complaints.push(what);
        }
    }

    /// Acknowledged writes that the store no longer has.
    pub(crate) fn lost_writes(&self) -> u64 {
        let lost = |key: &Key| key.deficit.max(u64::from(key.stale));
        self.keys.iter().map(lost).sum()
    }

    /// Writes that were applied more often than they were sent.
    pub(crate) fn duplicated_writes(&self) -> u64 {
        self.keys.iter().map(|key| key.excess).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Operation, Random, Reply, Status, value_of};
    use super::Book;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// A store that does what it should, unless told otherwise.
    #[derive(Default)]
    struct Store {
        entries: HashMap<u32, (Vec<u8>, u64)>,
        applied: u64,
    }

    impl Store {
        fn write(&mut self, key: u32, sequence: u64) {
            let entry = self.entries.entry(key).or_default();
            entry.0 = value_of(key, sequence);
            entry.1 += 1;
            self.applied += 1;
        }

        fn reply(&self, operation: Operation, key: u32, sequence: u64) -> Reply {
            let entry = self.entries.get(&key);
            let value = match (operation, entry) {
                (Operation::Read, Some((value, _))) => value.clone(),
                _ => Vec::new(),
            };
            Reply {
                operation,
                status: if entry.is_some() {
                    Status::Ok
                } else {
                    Status::NotFound
                },
                kernel: b'a',
                swap: 0,
                sequence,
                key,
                writes: entry.map_or(0, |(_, writes)| *writes),
                applied: self.applied,
                value,
            }
        }
    }

    fn write(book: &mut Book, store: &mut Store, key: u32) -> u64 {
        let sequence = book.issue(Operation::Write, key, 0);
        store.write(key, sequence);
        book.judge(&store.reply(Operation::Write, key, sequence));
        sequence
    }

    fn read(book: &mut Book, store: &Store, key: u32) {
        let sequence = book.issue(Operation::Read, key, 0);
        book.judge(&store.reply(Operation::Read, key, sequence));
    }

    fn clean(book: &Book) -> bool {
        book.lost_writes() == 0 && book.duplicated_writes() == 0 && book.complaints.is_empty()
    }

    #[test]
    fn a_store_that_does_its_work_gives_no_cause_for_complaint() {
        let (mut book, mut store) = (Book::new(4), Store::default());
        for round in 0..20 {
            read(&mut book, &store, round % 4);
            write(&mut book, &mut store, round % 4);
            read(&mut book, &store, round % 4);
        }
        assert!(clean(&book), "{:?}", book.complaints);
        assert_eq!(book.totals.acked_writes, 20);
        assert_eq!(book.totals.answered, 60);
    }

    #[test]
    fn a_lost_write_shows_even_when_a_later_one_hides_its_value() {
        let (mut book, mut store) = (Book::new(1), Store::default());
        write(&mut book, &mut store, 0);
        // Acknowledged, and then forgotten.
        let sequence = book.issue(Operation::Write, 0, 0);
        let mut reply = store.reply(Operation::Write, 0, sequence);
        reply.writes = 2;
        book.judge(&reply);
        assert_eq!(book.lost_writes(), 0);
        write(&mut book, &mut store, 0);
        read(&mut book, &store, 0);
        assert_eq!(book.lost_writes(), 1);
        assert_eq!(book.duplicated_writes(), 0);
    }

    #[test]
    fn a_write_applied_twice_shows() {
        let (mut book, mut store) = (Book::new(1), Store::default());
        let sequence = write(&mut book, &mut store, 0);
        store.write(0, sequence);
        read(&mut book, &store, 0);
        assert_eq!(book.duplicated_writes(), 1);
        assert_eq!(book.lost_writes(), 0);
    }

    #[test]
    fn a_store_that_went_back_to_an_older_copy_lost_a_write() {
        let (mut book, mut store) = (Book::new(1), Store::default());
        let first = write(&mut book, &mut store, 0);
        write(&mut book, &mut store, 0);
        // The older value with the newer counter.
        store.entries.get_mut(&0).unwrap().0 = value_of(0, first);
        read(&mut book, &store, 0);
        assert_eq!(book.lost_writes(), 1);
    }

    #[test]
    fn a_store_that_forgot_everything_lost_everything() {
        let (mut book, mut store) = (Book::new(1), Store::default());
        write(&mut book, &mut store, 0);
        write(&mut book, &mut store, 0);
        read(&mut book, &Store::default(), 0);
        assert_eq!(book.lost_writes(), 2);
    }

    #[test]
    fn an_unanswered_write_may_or_may_not_have_happened() {
        for happened in [false, true] {
            let (mut book, mut store) = (Book::new(1), Store::default());
            write(&mut book, &mut store, 0);
            let sequence = book.issue(Operation::Write, 0, 5);
            if happened {
                store.write(0, sequence);
            }
            book.give_up(6);
            assert_eq!(book.totals.unanswered, 1);
            assert_eq!(book.outstanding(), 0);
            read(&mut book, &store, 0);
            assert_eq!(book.lost_writes(), 0, "{:?}", book.complaints);
            assert_eq!(book.duplicated_writes(), 0);
            book.judge(&store.reply(Operation::Write, 0, sequence));
            assert_eq!(book.totals.late, 1);
        }
    }

    #[test]
    fn a_second_answer_to_one_request_is_counted() {
        let (mut book, mut store) = (Book::new(1), Store::default());
        let sequence = write(&mut book, &mut store, 0);
        book.judge(&store.reply(Operation::Write, 0, sequence));
        assert_eq!(book.totals.duplicate_replies, 1);
    }

    #[test]
    fn answers_to_other_questions_are_strange() {
        let (mut book, mut store) = (Book::new(2), Store::default());
        let sequence = book.issue(Operation::Write, 0, 0);
        store.write(0, sequence);
        store.write(1, sequence);
        book.judge(&store.reply(Operation::Write, 1, sequence));
        book.judge(&store.reply(Operation::Write, 0, 1000));
        assert_eq!(book.totals.strange, 2);
        assert_eq!(book.outstanding(), 1);
    }

    #[test]
    fn bytes_that_no_write_made_are_wrong() {
        let (mut book, mut store) = (Book::new(1), Store::default());
        write(&mut book, &mut store, 0);
        store.entries.get_mut(&0).unwrap().0[12] ^= 0x10;
        read(&mut book, &store, 0);
        assert_eq!(book.totals.wrong_values, 1);
    }

    proptest! {
        #[test]
        fn losses_and_duplicates_are_counted_exactly(seed: u64, losses in 0u64..4, twice in 0u64..4) {
            let (mut book, mut store) = (Book::new(8), Store::default());
            let mut random = Random::new(seed);
            for _ in 0..64 {
                write(&mut book, &mut store, random.below(8) as u32);
            }
            // Each fault hits a key of its own, so that one cannot hide the other.
            for key in 0..losses {
                if let Some(entry) = store.entries.get_mut(&(key as u32)) {
                    entry.1 -= 1;
                }
            }
            for key in 4..4 + twice {
                if let Some(entry) = store.entries.get_mut(&(key as u32)) {
                    entry.1 += 1;
                }
            }
            let hit = |range: std::ops::Range<u64>| {
                range.filter(|key| book_has(&store, *key)).count() as u64
            };
            let (lost, duplicated) = (hit(0..losses), hit(4..4 + twice));
            for key in book.written_keys() {
                read(&mut book, &store, key);
            }
            prop_assert_eq!(book.lost_writes(), lost);
            prop_assert_eq!(book.duplicated_writes(), duplicated);
        }
    }

    fn book_has(store: &Store, key: u64) -> bool {
        store.entries.contains_key(&(key as u32))
    }
}
