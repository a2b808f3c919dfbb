//! The file: its setup header, and the two parts it consists of.

use super::BzImageError;

/// Where the setup header begins, in the file as in the zero page.
pub(super) const HEADER: usize = 0x1f1;
/// Where the zero page continues after it.
const HEADER_LIMIT: usize = 0x290;
const SECTOR: usize = 512;

/// Offsets of the setup header's fields, in the file as in the zero page.
pub(super) mod field {
    pub(in super::super) const SETUP_SECTS: usize = 0x1f1;
    pub(in super::super) const SYSSIZE: usize = 0x1f4;
    pub(in super::super) const BOOT_FLAG: usize = 0x1fe;
    pub(in super::super) const JUMP_LENGTH: usize = 0x201;
    pub(in super::super) const MAGIC: usize = 0x202;
    pub(in super::super) const VERSION: usize = 0x206;
    pub(in super::super) const TYPE_OF_LOADER: usize = 0x210;
    pub(in super::super) const LOADFLAGS: usize = 0x211;
    pub(in super::super) const RAMDISK_IMAGE: usize = 0x218;
    pub(in super::super) const RAMDISK_SIZE: usize = 0x21c;
    pub(in super::super) const EXT_LOADER: usize = 0x226;
    pub(in super::super) const CMD_LINE_PTR: usize = 0x228;
    pub(in super::super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(in super::super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(in super::super) const RELOCATABLE_KERNEL: usize = 0x234;
    pub(in super::super) const MIN_ALIGNMENT: usize = 0x235;
    pub(in super::super) const XLOADFLAGS: usize = 0x236;
    pub(in super::super) const CMDLINE_SIZE: usize = 0x238;
    pub(in super::super) const HARDWARE_SUBARCH: usize = 0x23c;
    pub(in super::super) const PAYLOAD_OFFSET: usize = 0x248;
    pub(in super::super) const PAYLOAD_LENGTH: usize = 0x24c;
    pub(in super::super) const SETUP_DATA: usize = 0x250;
    pub(in super::super) const PREF_ADDRESS: usize = 0x258;
    pub(in super::super) const INIT_SIZE: usize = 0x260;
    /// After `handover_offset`, the last field of version 2.12.
    pub(in super::super) const END_2_12: usize = 0x268;
}

/// `loadflags`: the kernel is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry at 200h.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `xloadflags`: everything may be above 4 GiB.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// `xloadflags`: the kernel can be entered with 5-level paging.
const XLF_5LEVEL: u16 = 1 << 5;

/// A Linux kernel that can be loaded by the 64-bit boot protocol.
///
/// A value proves: a bzImage of protocol 2.12 to 2.x that has a 64-bit entry; both its parts and the
/// compressed kernel in it are in the file; its alignment is one, its preferred address has it, and
/// the room that it asks for holds it.
#[derive(Clone, Copy, Debug)]
pub struct BzImage<'a> {
    file: &'a [u8],
    header: &'a [u8],
    kernel: &'a [u8],
    setup_length: usize,
    version: u16,
    xloadflags: u16,
    relocatable: bool,
    alignment: u64,
    preferred: u64,
    init_size: u64,
    initrd_limit: u64,
    command_line_limit: u64,
}

impl<'a> BzImage<'a> {
    const OLDEST: u16 = 0x020c;
    const MAX_ALIGNMENT: u64 = 1 << 30;
    /// Where the kernel has its 64-bit entry.
    pub(super) const ENTRY: u64 = 0x200;

    /// Reads and checks a file.
    ///
    /// What a checksum would find is not looked for: see [`is_intact`](Self::is_intact).
    ///
    /// # Errors
    /// Where it is not a kernel that can be started by the 64-bit boot protocol.
    pub fn parse(file: &'a [u8]) -> Result<Self, BzImageError> {
        let have = file.len();
        let truncated = BzImageError::Truncated { have };
        let fields = Fields(file);
        let u8_at = |at| fields.byte(at).ok_or(truncated);
        let u16_at = |at| fields.word(at).ok_or(truncated);
        let u32_at = |at| fields.double(at).ok_or(truncated);

        let boot_flag = u16_at(field::BOOT_FLAG)?;
        if boot_flag != 0xaa55 {
            return Err(BzImageError::BootFlag(boot_flag));
        }
        let magic = u32_at(field::MAGIC)?;
        if magic != u32::from_le_bytes(*b"HdrS") {
            return Err(BzImageError::Magic(magic));
        }
        let version = u16_at(field::VERSION)?;
        if version < Self::OLDEST || version >> 8 != 2 {
            return Err(BzImageError::Version(version));
        }
        // The header ends where the jump at its start leads.
        let end = usize::from(u8_at(field::JUMP_LENGTH)?).saturating_add(field::MAGIC);
        if !(field::END_2_12..=HEADER_LIMIT).contains(&end) {
            return Err(BzImageError::HeaderLength { end });
        }
        let header = file.get(HEADER..end).ok_or(truncated)?;
        if u8_at(field::LOADFLAGS)? & LOADED_HIGH == 0 {
            return Err(BzImageError::LoadedLow);
        }
        let xloadflags = u16_at(field::XLOADFLAGS)?;
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BzImageError::No64BitEntry { xloadflags });
        }

        // 0 stands for 4; the boot sector is not counted.
        let sectors = match u8_at(field::SETUP_SECTS)? {
            0 => 4,
            count => usize::from(count),
        };
        let setup_length = sectors.saturating_add(1).saturating_mul(SECTOR);
        if end > setup_length {
            return Err(BzImageError::HeaderLength { end });
        }
        let length = usize::try_from(u64::from(u32_at(field::SYSSIZE)?).saturating_mul(16))
            .map_err(|_| truncated)?;
        let file_end = setup_length.checked_add(length).ok_or(truncated)?;
        let kernel = file.get(setup_length..file_end).ok_or(truncated)?;
        if length as u64 <= Self::ENTRY {
            return Err(BzImageError::NoKernel { length });
        }
        let (offset, payload) = (
            u32_at(field::PAYLOAD_OFFSET)?,
            u32_at(field::PAYLOAD_LENGTH)?,
        );
        let payload_end = u64::from(offset).saturating_add(u64::from(payload));
        if u64::from(offset) < Self::ENTRY || payload == 0 || payload_end > length as u64 {
            return Err(BzImageError::Payload {
                offset,
                length: payload,
            });
        }

        let relocatable = u8_at(field::RELOCATABLE_KERNEL)? != 0;
        let kernel_alignment = u32_at(field::KERNEL_ALIGNMENT)?;
        let min_alignment = u8_at(field::MIN_ALIGNMENT)?;
        let alignment = u64::from(kernel_alignment);
        let least = 1_u64.checked_shl(u32::from(min_alignment));
        if !alignment.is_power_of_two()
            || !(handoff_abi::FRAME_SIZE..=Self::MAX_ALIGNMENT).contains(&alignment)
            || least.is_none_or(|least| least > alignment)
        {
            return Err(BzImageError::Alignment {
                kernel_alignment,
                min_alignment,
            });
        }
        let preferred = fields.quad(field::PREF_ADDRESS).ok_or(truncated)?;
        // Alignment divides 2^64, so the sum is only too large where the kernel would wrap.
        let init_size = u64::from(u32_at(field::INIT_SIZE)?);
        let wraps = preferred.checked_add(init_size).is_none();
        if preferred & alignment.saturating_sub(1) != 0 || wraps || preferred == 0 {
            return Err(BzImageError::PreferredAddress(preferred));
        }
        if init_size < length as u64 {
            return Err(BzImageError::InitSize { init_size, length });
        }
        Ok(Self {
            file,
            header,
            kernel,
            setup_length,
            version,
            xloadflags,
            relocatable,
            alignment,
            preferred,
            init_size,
            initrd_limit: u64::from(u32_at(field::INITRD_ADDR_MAX)?).saturating_add(1),
            command_line_limit: u64::from(u32_at(field::CMDLINE_SIZE)?),
        })
    }

    /// Whether the checksum at the kernel's end is right. Damage anywhere in the file shows here, and
    /// otherwise often only in a kernel that does not start.
    ///
    /// Signing a kernel changes its PE checksum and says where the signature is; both are taken as
    /// they were before. Linux has put no checksum into its images since 6.16: `false` for such a
    /// one means nothing, and what installed it has to vouch for it.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_JAMCRC);
        let end = self.setup_length.saturating_add(self.kernel.len());
        let mut digest = CRC.digest();
        let mut done = 0_usize;
        for (at, length) in self.signed_fields().into_iter().flatten() {
            let after = at.saturating_add(length);
            let Some(before) = self.file.get(done..at).filter(|_| after <= end) else {
                continue;
            };
            digest.update(before);
            for _ in 0..length {
                digest.update(&[0]);
            }
            done = after;
        }
        digest.update(self.file.get(done..end).unwrap_or(&[]));
        // The checksum's own bytes are included, which makes it 0.
        digest.finalize() == 0
    }

    /// What signing changes in the PE header, in order: CheckSum, and the data directory's entry for
    /// certificates (PE format, optional header of PE32+).
    fn signed_fields(&self) -> Option<[(usize, usize); 2]> {
        let fields = Fields(self.file);
        let pe = usize::try_from(fields.double(0x3c)?).ok()?;
        let magic = u32::from_le_bytes(*b"PE\0\0");
        // In the setup part; anything else is not the header that the checksum was made over.
        if pe >= self.setup_length || fields.double(pe)? != magic {
            return None;
        }
        let optional = pe.checked_add(24)?;
        if fields.word(optional)? != 0x20b {
            return None;
        }
        Some([
            (optional.checked_add(64)?, 4),
            (optional.checked_add(144)?, 8),
        ])
    }

    /// The version of the boot protocol, major in the upper byte.
    #[must_use]
    pub const fn version(&self) -> u16 {
        self.version
    }

    /// Whether it can run at any address that has its alignment.
    #[must_use]
    pub const fn is_relocatable(&self) -> bool {
        self.relocatable
    }

    /// Whether it, its initial RAM disk and what it is told may be above 4 GiB.
    #[must_use]
    pub const fn can_be_above_4g(&self) -> bool {
        self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0
    }

    /// Whether it can be entered by a processor that uses 5-level paging.
    #[must_use]
    pub const fn takes_5_level_paging(&self) -> bool {
        self.xloadflags & XLF_5LEVEL != 0
    }

    /// What its address must be a multiple of.
    #[must_use]
    pub const fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where it would like to be.
    #[must_use]
    pub const fn preferred_address(&self) -> u64 {
        self.preferred
    }

    /// How many bytes it needs from its address on before it has read its memory map.
    #[must_use]
    pub const fn init_size(&self) -> u64 {
        self.init_size
    }

    /// The address past the last that its initial RAM disk may have, unless
    /// [`can_be_above_4g`](Self::can_be_above_4g).
    #[must_use]
    pub const fn initrd_limit(&self) -> u64 {
        self.initrd_limit
    }

    /// The most bytes that its command line may have, without the zero that ends it.
    #[must_use]
    pub const fn command_line_limit(&self) -> u64 {
        self.command_line_limit
    }

    /// The setup header, as it goes into the zero page at 1F1h.
    pub(super) const fn header(&self) -> &'a [u8] {
        self.header
    }

    /// What is loaded: the protected-mode part.
    pub(super) const fn kernel(&self) -> &'a [u8] {
        self.kernel
    }
}

/// Little-endian numbers at offsets.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn word(&self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn double(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn quad(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}
