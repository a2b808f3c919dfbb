//! Control packets: little-endian, fixed offsets.
//!
//! Request, 32 bytes: magic `u32`, operation `u8`, reserved `[u8; 3]`, nonce
//! `u64`, boot id `[u8; 16]`. The boot id names the boot that is to end, so that
//! a request which was queued while the guest was down does nothing when it
//! arrives at the next one.
//!
//! Reply, 64 bytes and text: magic `u32`, operation `u8` with bit 7 set, verdict
//! `u8`, kexec state `u8`, reserved `u8`, nonce `u64`, uptime in milliseconds
//! `u64`, boot id `[u8; 16]`, text length `u32`, reserved `u32`, time stamp counter
//! at the first user process's start `u64`, and now `u64`, text in UTF-8.

/// Identity of one boot of a kernel, as `/proc/sys/kernel/random/boot_id` gives it.
pub type BootId = [u8; 16];

const REQUEST_MAGIC: u32 = u32::from_le_bytes(*b"BKC1");
const REPLY_MAGIC: u32 = u32::from_le_bytes(*b"BKCR");
/// Length of a request in bytes.
pub const REQUEST_LENGTH: usize = 32;
/// Length of a reply without its text, in bytes.
pub const REPLY_HEADER_LENGTH: usize = 64;

/// What the host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Say which boot and which kernel this is.
    Describe,
    /// Forget everything that was stored.
    Clear,
    /// Read kernel and initramfs from the disk and hand them to `kexec_file_load`.
    Load,
    /// Start the loaded kernel.
    Kexec,
    /// Reset the machine through its firmware.
    FirmwareReboot,
    /// Switch the machine off.
    PowerOff,
    /// Crash the kernel, as the magic key `c` does. There is no reply.
    Panic,
}

impl Operation {
    const fn code(self) -> u8 {
        match self {
            Self::Describe => 1,
            Self::Clear => 2,
            Self::Load => 3,
            Self::Kexec => 4,
            Self::FirmwareReboot => 5,
            Self::PowerOff => 6,
            Self::Panic => 7,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Describe),
            2 => Some(Self::Clear),
            3 => Some(Self::Load),
            4 => Some(Self::Kexec),
            5 => Some(Self::FirmwareReboot),
            6 => Some(Self::PowerOff),
            7 => Some(Self::Panic),
            _ => None,
        }
    }
}

/// How far the preparation of a kexec is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KexecState {
    /// Nothing was asked for.
    Idle,
    /// Being loaded.
    Loading,
    /// The kernel accepted the image.
    Loaded,
    /// It did not; the reply's text says why.
    Failed,
}

impl KexecState {
    const fn code(self) -> u8 {
        match self {
            Self::Idle => 0,
            Self::Loading => 1,
            Self::Loaded => 2,
            Self::Failed => 3,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Idle),
            1 => Some(Self::Loading),
            2 => Some(Self::Loaded),
            3 => Some(Self::Failed),
            _ => None,
        }
    }
}

/// A control request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// Returned in the reply.
    pub nonce: u64,
    /// The boot this is meant for; ignored by [`Operation::Describe`].
    pub boot: BootId,
}

impl Request {
    /// The packet for this request.
    #[must_use]
    pub fn to_bytes(self) -> [u8; REQUEST_LENGTH] {
        let mut bytes = [0; REQUEST_LENGTH];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_le_bytes());
        bytes[4] = self.operation.code();
        bytes[8..16].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.boot);
        bytes
    }

    /// The request in a packet, or `None` if it holds none.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; REQUEST_LENGTH] = bytes.try_into().ok()?;
        if take::<4>(bytes, 0)? != REQUEST_MAGIC.to_le_bytes() {
            return None;
        }
        Some(Self {
            operation: Operation::from_code(bytes[4])?,
            nonce: u64::from_le_bytes(take(bytes, 8)?),
            boot: take(bytes, 16)?,
        })
    }
}

/// The answer to a control request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's operation.
    pub operation: Operation,
    /// Whether the request was accepted.
    pub accepted: bool,
    /// How far the preparation of a kexec is.
    pub kexec: KexecState,
    /// The request's nonce.
    pub nonce: u64,
    /// Time since this boot began, by the guest's clock, in milliseconds.
    pub uptime_ms: u64,
    /// Which boot answers.
    pub boot: BootId,
    /// The time stamp counter when this boot's first user process began. It goes on over a kexec, and
    /// begins with the machine.
    pub first_tsc: u64,
    /// The time stamp counter when this was answered.
    pub tsc: u64,
    /// The kernel's release and version, or the reason for a refusal or failure.
    pub text: String,
}

impl Reply {
    /// The packet for this reply.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; REPLY_HEADER_LENGTH];
        let length = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        bytes[0..4].copy_from_slice(&REPLY_MAGIC.to_le_bytes());
        bytes[4] = self.operation.code() | 0x80;
        bytes[5] = u8::from(!self.accepted);
        bytes[6] = self.kexec.code();
        bytes[8..16].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.uptime_ms.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.boot);
        bytes[40..44].copy_from_slice(&length.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.first_tsc.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.tsc.to_le_bytes());
        bytes.extend_from_slice(self.text.as_bytes());
        bytes
    }

    /// The reply in a packet, or `None` if it holds none.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if take::<4>(bytes, 0)? != REPLY_MAGIC.to_le_bytes() {
            return None;
        }
        let [code, verdict, kexec, _] = take(bytes, 4)?;
        let length = usize::try_from(u32::from_le_bytes(take(bytes, 40)?)).ok()?;
        let text = bytes.get(REPLY_HEADER_LENGTH..)?;
        if code & 0x80 == 0 || verdict > 1 || text.len() != length {
            return None;
        }
        Some(Self {
            operation: Operation::from_code(code & 0x7f)?,
            accepted: verdict == 0,
            kexec: KexecState::from_code(kexec)?,
            nonce: u64::from_le_bytes(take(bytes, 8)?),
            uptime_ms: u64::from_le_bytes(take(bytes, 16)?),
            boot: take(bytes, 24)?,
            first_tsc: u64::from_le_bytes(take(bytes, 48)?),
            tsc: u64::from_le_bytes(take(bytes, 56)?),
            text: String::from_utf8(text.to_vec()).ok()?,
        })
    }
}

fn take<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_as_it_was_written() {
        for operation in [
            Operation::Describe,
            Operation::Clear,
            Operation::Load,
            Operation::Kexec,
            Operation::FirmwareReboot,
            Operation::PowerOff,
            Operation::Panic,
        ] {
            let request = Request {
                operation,
                nonce: 0x0123_4567_89ab_cdef,
                boot: *b"0123456789abcdef",
            };
            assert_eq!(Request::parse(&request.to_bytes()), Some(request));
        }
    }

    #[test]
    fn a_reply_reads_back_as_it_was_written_and_not_when_cut() {
        let reply = Reply {
            operation: Operation::Load,
            accepted: false,
            kexec: KexecState::Failed,
            nonce: 7,
            uptime_ms: 1234,
            boot: [9; 16],
            first_tsc: 0x1122_3344_5566,
            tsc: 0x1122_3344_7788,
            text: "kexec_file_load: EPERM".into(),
        };
        let bytes = reply.to_bytes();
        assert_eq!(Reply::parse(&bytes), Some(reply));
        for length in 0..bytes.len() {
            assert_eq!(Reply::parse(&bytes[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_packet_of_the_service_is_no_control_packet() {
        let mut packet = [0; REQUEST_LENGTH];
        packet[0..4].copy_from_slice(b"BKV1");
        packet[4] = 1;
        assert_eq!(Request::parse(&packet), None);
    }
}
