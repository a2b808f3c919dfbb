//! What a processor says of itself: the facts that the rules for processors compare.
//!
//! CPUID answers for the processor that executes it, so each processor has to be asked by itself.

use handoff_abi::ApicId;

/// EAX, EBX, ECX and EDX of a leaf.
type Leaf = [u32; 4];

/// The first extended leaf, which says which is the last.
const EXTENDED: u32 = 0x8000_0000;

/// A processor's identity, as [`Cpu`](super::Cpu) wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct CpuIdentity {
    /// Its local APIC's id: 32 bits where there is a topology leaf, else 8.
    pub apic_id: ApicId,
    /// How many low bits of an APIC id tell the hardware threads of one core apart.
    pub thread_bits: u32,
    /// A digest of its vendor, signature and features; never 0. What firmware or a kernel can set
    /// differently on processors that are alike is not in it: OSXSAVE, OSPKE, and the APIC bits,
    /// which follow CR4 and IA32_APIC_BASE, and everything that numbers the processor.
    pub features: u64,
    /// The microcode revision is in the lower half of MSR 8Bh (AMD: PATCH_LEVEL), not in the upper
    /// one (Intel: IA32_BIOS_SIGN_ID).
    revision_is_low: bool,
}

impl CpuIdentity {
    /// The identity of the processor on which `cpuid` executes CPUID with a leaf (EAX) and a
    /// sub-leaf (ECX).
    #[must_use]
    pub fn read(mut cpuid: impl FnMut(u32, u32) -> Leaf) -> Self {
        let [last, vendor @ ..] = cpuid(0, 0);
        // A processor without extended leaves answers with less.
        let last_extended = cpuid(EXTENDED, 0)[0];
        let mut machine = Cpuid {
            cpuid,
            last,
            last_extended,
        };
        let (apic_id, thread_bits) = machine.topology();
        Self {
            apic_id: ApicId(apic_id),
            thread_bits,
            features: machine.digest(vendor),
            revision_is_low: [name(b"AuthenticAMD"), name(b"HygonGenuine")].contains(&vendor),
        }
    }

    /// The core that a processor of the same machine is a hardware thread of.
    #[must_use]
    pub const fn core_of(&self, cpu: ApicId) -> u32 {
        match cpu.0.checked_shr(self.thread_bits) {
            Some(core) => core,
            None => 0,
        }
    }

    /// The microcode update's revision, from what this processor's MSR 8Bh holds (Intel SDM volume
    /// 3, section 11.11.7.1: write 0 to it and execute CPUID leaf 1 before it is read).
    #[must_use]
    pub const fn microcode(&self, msr_8b: u64) -> u32 {
        if self.revision_is_low {
            msr_8b as u32
        } else {
            (msr_8b >> 32) as u32
        }
    }
}

/// A vendor as leaf 0 has it in EBX, ECX and EDX: EBX holds the first four letters, EDX the next.
const fn name(letters: &[u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *letters;
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([i, j, k, l]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

/// CPUID of one processor, with the leaves that it has.
struct Cpuid<F> {
    cpuid: F,
    last: u32,
    last_extended: u32,
}

impl<F: FnMut(u32, u32) -> Leaf> Cpuid<F> {
    /// A leaf; zeroes where the processor has none such. Asked beyond its last, a processor would
    /// answer with another leaf.
    fn leaf(&mut self, leaf: u32, sub: u32) -> Leaf {
        let last = if leaf >= EXTENDED {
            self.last_extended
        } else {
            self.last
        };
        if leaf <= last {
            (self.cpuid)(leaf, sub)
        } else {
            [0; 4]
        }
    }

    /// The APIC id, and how many of its bits number a core's threads.
    fn topology(&mut self) -> (u32, u32) {
        // V2 Extended Topology, then Extended Topology (Intel SDM volume 2, CPUID).
        for leaf in [0x1f, 0xb] {
            let [_, count, _, apic_id] = self.leaf(leaf, 0);
            if count & 0xffff == 0 {
                continue;
            }
            for level in 0..8 {
                let [shift, _, kind, _] = self.leaf(leaf, level);
                match kind >> 8 & 0xff {
                    0 => break,
                    1 => return (apic_id, shift & 0x1f),
                    _ => {}
                }
            }
            return (apic_id, 0);
        }
        let [_, ids, _, features] = self.leaf(1, 0);
        let apic_id = ids >> 24;
        // HTT: the number of logical processors in a package is valid.
        if features >> 28 & 1 == 0 {
            return (apic_id, 0);
        }
        // TopologyExtensions (AMD APM volume 3, Fn8000_001E: ThreadsPerCore).
        if self.leaf(EXTENDED + 1, 0)[2] >> 22 & 1 != 0 && self.last_extended >= EXTENDED + 0x1e {
            let more = self.leaf(EXTENDED + 0x1e, 0)[1] >> 8 & 0xff;
            return (apic_id, bits(more.saturating_add(1)));
        }
        let caches = self.leaf(4, 0)[0];
        // Both say how many there are besides the first.
        let more = if caches & 0x1f != 0 {
            caches >> 26
        } else {
            self.leaf(EXTENDED + 8, 0)[2] & 0xff
        };
        let cores = more.saturating_add(1);
        let logical = ids >> 16 & 0xff;
        (apic_id, bits(logical).saturating_sub(bits(cores)))
    }

    fn digest(&mut self, vendor: [u32; 3]) -> u64 {
        const APIC: u32 = 1 << 9;
        const OSXSAVE: u32 = 1 << 27;
        const OSPKE: u32 = 1 << 4;
        let mut digest = Fnv::NEW;
        digest.add(vendor);
        let [signature, line, more, features] = self.leaf(1, 0);
        digest.add([signature, line & 0xff00, more & !OSXSAVE, features & !APIC]);
        let [_, first, second, third] = self.leaf(7, 0);
        digest.add([first, second & !OSPKE, third]);
        digest.add(self.leaf(7, 1));
        digest.add(self.leaf(7, 2));
        // The extended state that there is; EBX would be the size of what is switched on.
        let [low, _, size, high] = self.leaf(0xd, 0);
        digest.add([low, size, high]);
        digest.add([self.leaf(0xd, 1)[0]]);
        // The kind of core, where a machine has several.
        digest.add([self.leaf(0x1a, 0)[0]]);
        let [_, _, more, features] = self.leaf(EXTENDED + 1, 0);
        digest.add([more, features & !APIC]);
        digest.add([self.leaf(EXTENDED + 7, 0)[3]]);
        let [widths, more, ..] = self.leaf(EXTENDED + 8, 0);
        digest.add([widths, more]);
        digest.0.max(1)
    }
}

/// How many bits number `count` things.
const fn bits(count: u32) -> u32 {
    match count.checked_sub(1) {
        Some(highest) => u32::BITS.saturating_sub(highest.leading_zeros()),
        None => 0,
    }
}

/// FNV-1a, 64 bits: small, and no difference that anybody wants to hide is looked for.
struct Fnv(u64);

impl Fnv {
    const NEW: Self = Self(0xcbf2_9ce4_8422_2325);

    fn add<const N: usize>(&mut self, words: [u32; N]) {
        for byte in words.iter().flat_map(|word| word.to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use super::*;

    /// A processor's answers. Where a leaf is not given it answers as an Intel processor does
    /// beyond its last leaf: with the last one.
    #[derive(Clone)]
    struct Table(BTreeMap<(u32, u32), Leaf>);

    impl Table {
        fn read(&self) -> CpuIdentity {
            CpuIdentity::read(|leaf, sub| {
                let last = self.0[&(0, 0)][0];
                let rubbish = [0xdead_beef; 4];
                if leaf < EXTENDED && leaf > last {
                    return rubbish;
                }
                self.0.get(&(leaf, sub)).copied().unwrap_or(
                    if leaf > EXTENDED && leaf > self.0[&(EXTENDED, 0)][0] {
                        rubbish
                    } else {
                        [0; 4]
                    },
                )
            })
        }

        fn with(&self, leaf: u32, sub: u32, register: usize, flip: u32) -> Self {
            let mut table = self.clone();
            table.0.entry((leaf, sub)).or_insert([0; 4])[register] ^= flip;
            table
        }
    }

    fn leaf_0(last: u32, vendor: &[u8; 12]) -> Leaf {
        let [ebx, ecx, edx] = name(vendor);
        [last, ebx, ecx, edx]
    }

    /// A processor with topology leaf Bh: two threads in each core, eight in the package.
    fn threaded(apic_id: u32) -> Table {
        Table(BTreeMap::from([
            ((0, 0), leaf_0(0x1a, b"GenuineIntel")),
            (
                (1, 0),
                [
                    0x0009_06a3,
                    apic_id << 24 | 8 << 16 | 8 << 8,
                    0x7ffa_fbbf,
                    0xbfeb_fbff,
                ],
            ),
            ((7, 0), [2, 0x239c_a7eb, 0x9840_07bc, 0xfc18_c410]),
            ((7, 1), [0x0040_0810, 0, 0, 0]),
            ((0xb, 0), [1, 2, 0x100, apic_id]),
            ((0xb, 1), [3, 8, 0x201, apic_id]),
            ((0xb, 2), [0, 0, 2, apic_id]),
            ((0xd, 0), [0x207, 0x988, 0x988, 0]),
            ((0xd, 1), [0xf, 0, 0, 0]),
            ((0x1a, 0), [0x4000_0001, 0, 0, 0]),
            ((EXTENDED, 0), [EXTENDED + 8, 0, 0, 0]),
            ((EXTENDED + 1, 0), [0, 0, 0x121, 0x2c10_0800]),
            ((EXTENDED + 7, 0), [0, 0, 0, 0x100]),
            ((EXTENDED + 8, 0), [0x302e, 0, 0, 0]),
        ]))
    }

    #[test]
    fn threads_of_one_core_have_the_same_number() {
        let identity = threaded(5).read();
        assert_eq!((identity.apic_id, identity.thread_bits), (ApicId(5), 1));
        let cores: Vec<u32> = (0..6).map(|id| identity.core_of(ApicId(id))).collect();
        assert_eq!(cores, [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn the_newer_topology_leaf_comes_first() {
        let mut table = threaded(5);
        table.0.insert((0, 0), leaf_0(0x1f, b"GenuineIntel"));
        table.0.insert((0x1f, 0), [2, 4, 0x100, 0x1_0005]);
        let identity = table.read();
        assert_eq!(
            (identity.apic_id, identity.thread_bits),
            (ApicId(0x1_0005), 2)
        );
        // Where it has no level, it is not there.
        table.0.insert((0x1f, 0), [0; 4]);
        assert_eq!(table.read().thread_bits, 1);
    }

    #[test]
    fn a_topology_without_a_level_of_threads_has_one_thread_for_each_core() {
        let mut table = threaded(5);
        table.0.insert((0xb, 0), [3, 8, 0x200, 5]);
        table.0.insert((0xb, 1), [0, 0, 1, 5]);
        assert_eq!(table.read().thread_bits, 0);
    }

    #[test]
    fn without_topology_leaves_threads_are_what_cores_leave_over() {
        let mut table = threaded(5);
        table.0.insert((0, 0), leaf_0(4, b"GenuineIntel"));
        // Eight logical processors; leaf 4 says how many cores.
        for (cores, bits) in [(4, 1), (8, 0), (2, 2), (3, 1)] {
            table.0.insert((4, 0), [(cores - 1) << 26 | 1, 0, 0, 0]);
            let identity = table.read();
            assert_eq!((identity.apic_id, identity.thread_bits), (ApicId(5), bits));
        }
        // Without HTT there is one.
        assert_eq!(table.with(1, 0, 3, 1 << 28).read().thread_bits, 0);
    }

    #[test]
    fn levels_after_the_last_do_not_count() {
        let mut table = threaded(5);
        table.0.insert((0xb, 0), [3, 8, 0x200, 5]);
        table.0.insert((0xb, 1), [0, 0, 1, 5]);
        table.0.insert((0xb, 2), [1, 2, 0x102, 5]);
        assert_eq!(table.read().thread_bits, 0);
    }

    #[test]
    fn a_processor_that_counts_no_logical_ones_has_one_thread() {
        let mut table = threaded(5);
        table.0.insert((0, 0), leaf_0(1, b"AuthenticAMD"));
        table.0.insert((1, 0), [0, 5 << 24, 0, 1 << 28]);
        assert_eq!(table.read().thread_bits, 0);
    }

    #[test]
    fn more_bits_than_an_id_has_make_one_core() {
        let mut identity = threaded(5).read();
        identity.thread_bits = 32;
        assert_eq!(identity.core_of(ApicId(u32::MAX)), 0);
    }

    #[test]
    fn amd_processors_without_the_leaf_of_threads_are_counted_by_cores() {
        let mut table = threaded(5);
        table.0.insert((0, 0), leaf_0(1, b"AuthenticAMD"));
        // Sixteen logical processors. The field beside the number of cores is not part of it.
        table.0.get_mut(&(1, 0)).unwrap()[1] = 5 << 24 | 16 << 16;
        table.0.insert((EXTENDED + 1, 0), [0, 0, 1 << 22, 0]);
        table.0.insert((EXTENDED + 8, 0), [0, 0, 0x4007, 0]);
        assert_eq!(table.read().thread_bits, 1);
    }

    #[test]
    fn amd_says_how_many_threads_a_core_has() {
        let mut table = threaded(5);
        table.0.insert((0, 0), leaf_0(1, b"AuthenticAMD"));
        table.0.insert((EXTENDED, 0), [EXTENDED + 0x1e, 0, 0, 0]);
        table.0.insert((EXTENDED + 1, 0), [0, 0, 1 << 22, 0]);
        table.0.insert((EXTENDED + 0x1e, 0), [5, 1 << 8, 0, 0]);
        assert_eq!(table.read().thread_bits, 1);
        // Older ones say how many cores a package has.
        table.0.insert((EXTENDED + 1, 0), [0; 4]);
        table.0.insert((EXTENDED + 8, 0), [0, 0, 7, 0]);
        assert_eq!(table.read().thread_bits, 0);
    }

    #[test]
    fn processors_that_are_alike_have_the_same_digest() {
        let one = threaded(2);
        let digest = one.read().features;
        assert_ne!(digest, 0);
        // Another processor of the machine, and what a kernel switches on there.
        let other = threaded(7)
            .with(1, 0, 2, 1 << 27)
            .with(1, 0, 3, 1 << 9)
            .with(7, 0, 2, 1 << 4)
            .with(0xd, 0, 1, 0x340)
            .with(EXTENDED + 1, 0, 3, 1 << 9);
        assert_eq!(other.read().features, digest);
    }

    #[test]
    fn any_feature_more_or_less_is_another_digest() {
        let one = threaded(2);
        let digest = one.read().features;
        for (leaf, sub, register, bit) in [
            (0, 0, 1, 0),
            (1, 0, 0, 0),
            (1, 0, 2, 28),
            (1, 0, 3, 0),
            (7, 0, 1, 5),
            (7, 0, 2, 3),
            (7, 0, 3, 15),
            (7, 1, 0, 4),
            (0xd, 0, 0, 2),
            (0xd, 1, 0, 0),
            (0x1a, 0, 0, 29),
            (EXTENDED + 1, 0, 2, 5),
            (EXTENDED + 1, 0, 3, 27),
            (EXTENDED + 7, 0, 3, 8),
            (EXTENDED + 8, 0, 0, 0),
        ] {
            let other = one.with(leaf, sub, register, 1 << bit);
            assert_ne!(other.read().features, digest, "{leaf:#x}.{sub} {register}");
        }
    }

    #[test]
    fn leaves_that_a_processor_lacks_are_not_asked_for() {
        let mut table = threaded(2);
        table.0.insert((0, 0), leaf_0(1, b"GenuineIntel"));
        table.0.insert((EXTENDED, 0), [EXTENDED - 1, 0, 0, 0]);
        let identity = CpuIdentity::read(|leaf, sub| {
            assert!([0, 1, EXTENDED].contains(&leaf), "leaf {leaf:#x}");
            table.0[&(leaf, sub)]
        });
        assert_eq!(identity.apic_id, ApicId(2));
    }

    #[test]
    fn the_microcode_revision_is_where_the_vendor_keeps_it() {
        let mut table = threaded(2);
        let msr = 0x0000_00f4_0100_0065;
        assert_eq!(table.read().microcode(msr), 0xf4);
        for vendor in [b"AuthenticAMD", b"HygonGenuine"] {
            table.0.insert((0, 0), leaf_0(0xd, vendor));
            assert_eq!(table.read().microcode(msr), 0x0100_0065);
        }
    }
}
