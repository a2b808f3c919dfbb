//! The service: a datagram in, a datagram out.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use zerocopy::FromBytes;

use crate::layout::Counters;
use crate::protocol::{
    MAX_DATAGRAM, MAX_VALUE, REQUEST_MAGIC, Reply, Request, RequestHeader, op, status,
};
use crate::store::Store;

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// The kernel's letter, in ASCII.
    pub kernel: u8,
}

/// Adds one to a counter that only the owner of the workload writes.
pub(crate) fn count(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Does what `datagram` asks for, and writes the reply to the start of `out`; says how long the
/// reply is. `None` where there is none to give: the datagram does not even begin like a request.
pub fn answer(
    server: Server,
    store: &mut Store<'_>,
    counters: &Counters,
    datagram: &[u8],
    out: &mut [u8; MAX_DATAGRAM],
) -> Option<usize> {
    let mut value = [0; MAX_VALUE];
    let mut reply = Reply {
        op: 0,
        status: status::OK,
        kernel: server.kernel,
        swap: counters.swaps.load(Relaxed) as u8,
        sequence: 0,
        key: 0,
        writes: 0,
        applied: 0,
        value: &[],
    };
    match Request::decode(datagram) {
        Ok(Request::Write {
            sequence,
            key,
            value,
        }) => {
            (reply.op, reply.sequence, reply.key) = (op::WRITE, sequence, key);
            match store.put(key, value) {
                Ok(writes) => reply.writes = writes,
                Err(_) => {
                    reply.status = status::REFUSED;
                    reply.writes = store.writes(key);
                }
            }
        }
        Ok(Request::Read { sequence, key }) => {
            (reply.op, reply.sequence, reply.key) = (op::READ, sequence, key);
            match store.get(key, &mut value) {
                Some(found) => {
                    reply.value = &value[..found.length];
                    reply.writes = found.writes;
                }
                None => reply.status = status::NOT_FOUND,
            }
        }
        Err(_) => {
            let header = RequestHeader::ref_from_prefix(datagram).ok();
            let Some((header, _)) = header.filter(|(header, _)| header.magic == REQUEST_MAGIC)
            else {
                count(&counters.malformed);
                return None;
            };
            reply.status = status::REFUSED;
            (reply.op, reply.sequence, reply.key) =
                (header.op, header.sequence.get(), header.key.get());
        }
    }
    reply.applied = store.applied();
    if reply.status == status::REFUSED {
        count(&counters.refused);
    }
    count(&counters.answered);
    reply.encode(out)
}
