//! The load against servers on the host: one that does its work and some that do not.

use super::wire::tests::reply_bytes;
use super::wire::{Operation, Reply, Status};
use super::{Load, LoadOptions, LoadReport};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// What the server does with the `n`th request.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Every 50th request gets no answer and has no effect.
    Drop,
    /// Every 50th write is acknowledged and forgotten.
    Forget,
    /// Every 50th write is applied twice.
    Twice,
    /// Every 50th answer is sent twice.
    AnswerTwice,
}

fn serve(fault: Fault, stop: &AtomicBool, socket: &UdpSocket) {
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let mut store: HashMap<u32, (Vec<u8>, u64)> = HashMap::new();
    let mut applied = 0;
    let mut buffer = [0; 2048];
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        number += 1;
        let hit = number % 50 == 0;
        if hit && fault == Fault::Drop {
            continue;
        }
        let sequence = u64::from_le_bytes(buffer[8..16].try_into().unwrap());
        let key = u32::from_le_bytes(buffer[16..20].try_into().unwrap());
        let operation = if buffer[4] == 1 {
            Operation::Write
        } else {
            Operation::Read
        };
        let mut claimed = 0;
        if operation == Operation::Write {
            let times = match (hit, fault) {
                (true, Fault::Forget) => 0,
                (true, Fault::Twice) => 2,
                _ => 1,
            };
            let entry = store.entry(key).or_default();
            for _ in 0..times {
                entry.0 = buffer[32..length].to_vec();
                entry.1 += 1;
                applied += 1;
            }
            claimed = u64::from(times == 0);
        }
        let entry = store.get(&key);
        let reply = Reply {
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
            writes: entry.map_or(0, |(_, writes)| *writes) + claimed,
            applied,
            value: match (operation, entry) {
                (Operation::Read, Some((value, _))) => value.clone(),
                _ => Vec::new(),
            },
        };
        answer(socket, from, &reply);
        if hit && fault == Fault::AnswerTwice {
            answer(socket, from, &reply);
        }
    }
}

fn answer(socket: &UdpSocket, to: SocketAddr, reply: &Reply) {
    socket.send_to(&reply_bytes(reply), to).unwrap();
}

fn run(fault: Fault) -> LoadReport {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let service = SocketAddrV4::new(Ipv4Addr::LOCALHOST, socket.local_addr().unwrap().port());
    let stop = Arc::new(AtomicBool::new(false));
    let for_server = Arc::clone(&stop);
    let server = thread::spawn(move || serve(fault, &for_server, &socket));
    let options = LoadOptions {
        interval: Duration::from_micros(50),
        // Only where requests are dropped does anybody wait that long.
        patience: match fault {
            Fault::Drop => Duration::from_millis(400),
            _ => Duration::from_secs(30),
        },
        keys: 32,
        ..LoadOptions::default()
    };
    let load = Load::start(service, options).unwrap();
    load.wait_answers(400, Duration::from_secs(20)).unwrap();
    let report = load.finish().unwrap();
    stop.store(true, Ordering::Relaxed);
    server.join().unwrap();
    report
}

#[test]
fn a_good_server_loses_and_doubles_nothing() {
    let report = run(Fault::None);
    assert_eq!(report.complaints, Vec::<String>::new());
    assert_eq!((report.lost_writes, report.duplicated_writes), (0, 0));
    assert_eq!(report.totals.unanswered, 0);
    assert_eq!(report.totals.sent, report.totals.answered);
    assert_eq!(report.read_back, 32);
    assert_eq!(report.read_back_unanswered, 0);
    assert_eq!(report.applied, report.totals.acked_writes);
    assert_eq!(report.arrivals.len() as u64, report.totals.answered);
}

#[test]
fn a_dropped_request_is_never_sent_again() {
    let report = run(Fault::Drop);
    assert!(report.totals.unanswered > 0);
    assert_eq!(
        report.totals.sent,
        report.totals.answered + report.totals.unanswered
    );
    assert_eq!((report.lost_writes, report.duplicated_writes), (0, 0));
}

#[test]
fn a_forgotten_write_is_lost() {
    let report = run(Fault::Forget);
    assert!(report.lost_writes > 0);
    assert_eq!(report.duplicated_writes, 0);
}

#[test]
fn a_write_applied_twice_is_duplicated() {
    let report = run(Fault::Twice);
    assert!(report.duplicated_writes > 0);
    assert_eq!(report.lost_writes, 0);
}

#[test]
fn a_second_answer_is_no_second_write() {
    let report = run(Fault::AnswerTwice);
    assert!(report.totals.duplicate_replies > 0);
    assert_eq!((report.lost_writes, report.duplicated_writes), (0, 0));
}
