//! Successors that go wrong on purpose, for the tests: `fault=POINT:HOW` on the command line.

use partition_core::watch::OwnStatus;

use super::command_line::option;
use crate::{clock, cpu, println};

/// Where in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Before anything was said.
    Launched,
    /// After `ENTERED`.
    Entered,
    /// After `NEGOTIATED`.
    Negotiated,
    /// After `READY`.
    Ready,
    /// When asked to expect the commit.
    Expecting,
    /// From there on: its service processor hears nothing.
    Deaf,
}

/// What it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Halts with interrupts off.
    Hang,
    /// Loops with interrupts off, writing to its own memory.
    Loop,
    /// Gives up, and says so.
    Exit,
    /// Waits longer than anybody waits for it, and goes on.
    Slow,
}

/// What a kernel was told to do wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Misbehaviour(Option<(Point, How)>);

/// How long `Slow` waits, in microseconds: longer than the prime.
const SLOW: u64 = 25_000_000;
/// The kernel's own number, in the exchange, for an exit on purpose.
const ASKED: u32 = 0x600d;

impl Misbehaviour {
    /// What the command line asks for.
    #[must_use]
    pub fn of(line: &str) -> Self {
        let fault = option(line, "fault").and_then(|fault| fault.split_once(':'));
        Self(fault.and_then(|(point, how)| {
            let point = match point {
                "launched" => Point::Launched,
                "entered" => Point::Entered,
                "negotiated" => Point::Negotiated,
                "ready" => Point::Ready,
                "expecting" => Point::Expecting,
                "deaf" => Point::Deaf,
                _ => return None,
            };
            let how = match how {
                "hang" => How::Hang,
                "loop" => How::Loop,
                "exit" => How::Exit,
                "slow" => How::Slow,
                _ => return None,
            };
            Some((point, how))
        }))
    }

    /// Whether its service processor is to hear nothing.
    #[must_use]
    pub fn is_deaf(self) -> bool {
        matches!(self.0, Some((Point::Deaf, _)))
    }

    /// Goes wrong, if this is the point.
    pub fn at(self, point: Point, status: &OwnStatus<'_>) {
        let Some((_, how)) = self.0.filter(|&(wanted, _)| wanted == point) else {
            return;
        };
        match how {
            How::Hang => cpu::halt_forever(),
            How::Loop => cpu::without_interrupts(|| {
                let mut sink = 0_u64;
                loop {
                    sink = core::hint::black_box(sink.wrapping_mul(3).wrapping_add(1));
                }
            }),
            How::Exit => {
                status.fail(ASKED, point as u64);
                cpu::halt_forever()
            }
            How::Slow => {
                clock::wait_until(SLOW, || false);
                println!("@late point={point:?}");
            }
        }
    }
}
