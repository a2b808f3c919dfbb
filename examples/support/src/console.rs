//! The console: a 16550-compatible UART in port space, polled.

use core::fmt::{self, Write};

use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};
use x86_64::instructions::interrupts::without_interrupts;

use crate::clock;

/// How long a byte may wait for the transmitter, in time stamp counter ticks. If nobody takes what
/// is sent the kernel must not stand still, so the console is given up until it is ready again.
const PATIENCE: u64 = 10_000_000_000;

/// The longest command line; a longer one is cut off there.
pub const LINE: usize = 256;

struct Console {
    uart: Uart16550<PioBackend>,
    stalled: bool,
    line: heapless::Vec<u8, LINE>,
}

static CONSOLE: Mutex<Option<Console>> = Mutex::new(None);

/// Makes the UART at `port` the console.
///
/// Returns whether there is one.
///
/// # Safety
/// The eight ports from `port` on are an UART's, and it is this kernel's.
pub unsafe fn init(port: u16) -> bool {
    // SAFETY: the caller's promise.
    let Ok(mut uart) = (unsafe { Uart16550::new_port(port) }) else {
        return false;
    };
    if uart.init(Config::default()).is_err() {
        return false;
    }
    without_interrupts(|| {
        *CONSOLE.lock() = Some(Console {
            uart,
            stalled: false,
            line: heapless::Vec::new(),
        });
    });
    true
}

impl Console {
    fn send(&mut self, byte: u8) {
        let start = clock::tsc();
        while self.uart.try_send_byte(byte).is_err() {
            if self.stalled || clock::tsc().wrapping_sub(start) > PATIENCE {
                self.stalled = true;
                return;
            }
            core::hint::spin_loop();
        }
        self.stalled = false;
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.send(byte));
        Ok(())
    }
}

/// Prints, with interrupts off for as long as that takes. See [`print!`](crate::print).
pub fn print(text: fmt::Arguments<'_>) {
    without_interrupts(|| {
        if let Some(console) = CONSOLE.lock().as_mut() {
            // The console itself never fails, and what a Display fails to say is not said.
            let _ = console.write_fmt(text);
        }
    });
}

/// Prints `text` and the end of the line in one piece. See [`println!`](crate::println).
pub fn print_line(text: fmt::Arguments<'_>) {
    print(format_args!("{text}\n"));
}

/// Prints from an exception handler or a panic, where the lock may be held by who was interrupted.
pub fn print_last_words(text: fmt::Arguments<'_>) {
    without_interrupts(|| {
        let start = clock::tsc();
        let mut console = loop {
            if let Some(console) = CONSOLE.try_lock() {
                break console;
            }
            if clock::tsc().wrapping_sub(start) > PATIENCE {
                // SAFETY: whoever holds the lock has been interrupted by the very failure that is
                // to be reported, or stands still; two writers would at worst mix their letters.
                unsafe { CONSOLE.force_unlock() };
            }
            core::hint::spin_loop();
        };
        if let Some(console) = console.as_mut() {
            // As in `print`.
            let _ = console.write_fmt(text);
        }
    });
}

/// Takes what has been received, and returns a line if one is complete: without its end, and cut
/// off at [`LINE`] bytes. Never waits. Empty lines are skipped.
pub fn read_line() -> Option<heapless::String<LINE>> {
    without_interrupts(|| {
        let mut guard = CONSOLE.lock();
        let console = guard.as_mut()?;
        while let Ok(byte) = console.uart.try_receive_byte() {
            if byte != b'\n' && byte != b'\r' {
                // A byte that does not fit is cut off.
                let _ = console.line.push(byte);
                continue;
            }
            let line = core::mem::take(&mut console.line);
            if let Ok(text) = heapless::String::from_utf8(line)
                && !text.trim().is_empty()
            {
                return Some(text);
            }
        }
        None
    })
}

/// Prints on the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(::core::format_args!($($argument)*)) };
}

/// Prints a line on the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => {
        $crate::console::print_line(::core::format_args!($($argument)*))
    };
}
