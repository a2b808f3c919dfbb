//! Mailboxes: one bounded queue for each ordered pair of partitions, one producer and one
//! consumer. Neither side can make the other read out of bounds or wait.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use core::fmt;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use handoff_abi::{MAILBOX_SLOTS, Mailbox, Message};

/// Why a message was not sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum MailboxError {
    /// The consumer has not taken the older ones yet.
    Full,
    /// Head and tail are further apart than the mailbox is long: the other side wrote nonsense.
    Corrupt {
        /// Messages ever put in.
        head: u32,
        /// Messages ever taken out.
        tail: u32,
    },
}

impl fmt::Display for MailboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("mailbox is full"),
            Self::Corrupt { head, tail } => {
                write!(f, "mailbox is corrupt: {head} messages in, {tail} out")
            }
        }
    }
}

impl core::error::Error for MailboxError {}

fn waiting(head: u32, tail: u32) -> Result<u32, MailboxError> {
    let waiting = head.wrapping_sub(tail);
    if waiting as usize > MAILBOX_SLOTS {
        return Err(MailboxError::Corrupt { head, tail });
    }
    Ok(waiting)
}

/// The producer's end. Keeps its own count: what the other side may have written over is not read
/// back.
#[derive(Debug)]
pub struct Sender<'a> {
    mailbox: &'a Mailbox,
    head: u32,
}

impl<'a> Sender<'a> {
    /// Takes up the producer's end.
    pub fn new(mailbox: &'a Mailbox) -> Self {
        Self {
            mailbox,
            head: mailbox.head.load(Acquire),
        }
    }

    /// Puts a message in.
    ///
    /// # Errors
    /// Where the mailbox is full or corrupt.
    pub fn send(&mut self, message: &Message) -> Result<(), MailboxError> {
        let tail = self.mailbox.tail.load(Acquire);
        if waiting(self.head, tail)? as usize == MAILBOX_SLOTS {
            return Err(MailboxError::Full);
        }
        if let Some(slot) = self.mailbox.slots.get(self.head as usize % MAILBOX_SLOTS) {
            for (to, from) in slot.iter().zip(message) {
                to.store(*from, Relaxed);
            }
        }
        self.head = self.head.wrapping_add(1);
        self.mailbox.head.store(self.head, Release);
        Ok(())
    }
}

/// The consumer's end.
#[derive(Debug)]
pub struct Receiver<'a> {
    mailbox: &'a Mailbox,
    tail: u32,
}

impl<'a> Receiver<'a> {
    /// Takes up the consumer's end.
    pub fn new(mailbox: &'a Mailbox) -> Self {
        Self {
            mailbox,
            tail: mailbox.tail.load(Acquire),
        }
    }

    /// Takes the oldest message out: copied once, so what is checked is what is used.
    ///
    /// # Errors
    /// Where the mailbox is corrupt.
    pub fn receive(&mut self) -> Result<Option<Message>, MailboxError> {
        let head = self.mailbox.head.load(Acquire);
        if waiting(head, self.tail)? == 0 {
            return Ok(None);
        }
        let mut message = [0; 8];
        if let Some(slot) = self.mailbox.slots.get(self.tail as usize % MAILBOX_SLOTS) {
            for (to, from) in message.iter_mut().zip(slot) {
                *to = from.load(Relaxed);
            }
        }
        self.tail = self.tail.wrapping_add(1);
        self.mailbox.tail.store(self.tail, Release);
        Ok(Some(message))
    }
}
