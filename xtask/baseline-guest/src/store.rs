//! The key-value store behind the service: ordinary memory of an ordinary
//! process, so it ends with the kernel.

use std::collections::HashMap;

use baton_workload::protocol::{Reply, Request, op, status};

/// ASCII letter by which a reply says that Linux served it.
pub const KERNEL: u8 = b'l';
/// Most keys the store takes.
pub const MAX_KEYS: usize = 65536;

#[derive(Default)]
struct Entry {
    value: Vec<u8>,
    writes: u64,
}

/// The store.
#[derive(Default)]
pub struct Store {
    entries: HashMap<u32, Entry>,
    applied: u64,
}

impl Store {
    /// Applies a request and returns the reply.
    pub fn serve(&mut self, request: &Request<'_>) -> Reply<'_> {
        let (op, sequence, key) = match *request {
            Request::Write { sequence, key, .. } => (op::WRITE, sequence, key),
            Request::Read { sequence, key } => (op::READ, sequence, key),
        };
        let mut reply = Reply {
            op,
            status: status::OK,
            kernel: KERNEL,
            swap: 0,
            sequence,
            key,
            writes: 0,
            applied: self.applied,
            value: &[],
        };
        match *request {
            Request::Write { value, .. } => {
                if self.entries.len() >= MAX_KEYS && !self.entries.contains_key(&key) {
                    reply.status = status::REFUSED;
                    return reply;
                }
                let entry = self.entries.entry(key).or_default();
                entry.value.clear();
                entry.value.extend_from_slice(value);
                entry.writes += 1;
                self.applied += 1;
                reply.writes = entry.writes;
                reply.applied = self.applied;
            }
            Request::Read { .. } => match self.entries.get(&key) {
                Some(entry) => {
                    reply.writes = entry.writes;
                    reply.value = &entry.value;
                }
                None => reply.status = status::NOT_FOUND,
            },
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(key: u32, value: &[u8]) -> Request<'_> {
        Request::Write {
            sequence: 1,
            key,
            value,
        }
    }

    fn read(key: u32) -> Request<'static> {
        Request::Read { sequence: 1, key }
    }

    #[test]
    fn every_write_is_counted_for_its_key_and_for_the_store() {
        let mut store = Store::default();
        for (key, writes, applied) in [(1, 1, 1), (2, 1, 2), (1, 2, 3)] {
            let reply = store.serve(&write(key, b"v"));
            assert_eq!((reply.writes, reply.applied), (writes, applied));
        }
    }

    #[test]
    fn a_read_returns_the_last_value_and_a_key_never_written_is_not_found() {
        let mut store = Store::default();
        store.serve(&write(1, b"old"));
        store.serve(&write(1, b"new"));
        let reply = store.serve(&read(1));
        assert_eq!((reply.status, reply.value), (status::OK, &b"new"[..]));
        assert_eq!(store.serve(&read(2)).status, status::NOT_FOUND);
    }

    #[test]
    fn a_full_store_refuses_new_keys_and_takes_old_ones() {
        let mut store = Store::default();
        for key in 0..u32::try_from(MAX_KEYS).unwrap() {
            store.serve(&write(key, b""));
        }
        assert_eq!(store.serve(&write(u32::MAX, b"")).status, status::REFUSED);
        let reply = store.serve(&write(0, b""));
        assert_eq!((reply.status, reply.writes), (status::OK, 2));
    }
}
