//! The rules for processors.

use handoff_abi::ApicId;

use super::findings::{List, Reason};
use super::machine::{Cpu, Machine};
use super::request::CpuRequest;
use super::{Draft, Plan, push};

impl<'a> Machine<'a> {
    /// The processor that others are compared with.
    fn reference_cpu(&self) -> Option<&'a Cpu> {
        let mut cpus = self.cpus.iter();
        cpus.find(|cpu| cpu.runs_prime).or(self.cpus.first())
    }

    fn cpu_entries(&self, id: ApicId) -> impl Iterator<Item = &'a Cpu> {
        self.cpus.iter().filter(move |cpu| cpu.apic_id == id)
    }

    fn cpu_is_free(&self, id: ApicId) -> bool {
        self.cpu_entries(id)
            .all(|cpu| self.may_give(cpu.owner) && !cpu.is_bsp && !cpu.runs_prime)
    }

    /// Every processor that could be given away, once.
    fn free_cpus(&self) -> impl Iterator<Item = &'a Cpu> {
        let machine = *self;
        self.cpus
            .iter()
            .enumerate()
            .filter_map(move |(index, cpu)| {
                let earlier = machine.cpus.iter().take(index);
                let first = !earlier
                    .into_iter()
                    .any(|other| other.apic_id == cpu.apic_id);
                (first && machine.cpu_is_free(cpu.apic_id)).then_some(cpu)
            })
    }

    fn core(&self, core: u32) -> impl Iterator<Item = &'a Cpu> {
        self.cpus.iter().filter(move |cpu| cpu.core == core)
    }
}

impl Draft<'_> {
    pub(super) fn cpus(&mut self) {
        match self.request.cpus {
            CpuRequest::These([]) | CpuRequest::Count(0) => self.findings.refuse(Reason::NoCpu),
            CpuRequest::These(ids) => self.take_cpus(ids),
            CpuRequest::Count(count) => self.choose_cpus(count),
        }
        self.compare_cpus();
    }

    fn take_cpus(&mut self, ids: &[ApicId]) {
        for (index, &cpu) in ids.iter().enumerate() {
            if ids.iter().take(index).any(|&other| other == cpu) {
                self.findings.refuse(Reason::CpuTwice { cpu });
                continue;
            }
            let mut found = false;
            for entry in self.machine.cpu_entries(cpu) {
                found = true;
                let owner = entry.owner;
                if !self.machine.may_give(owner) {
                    self.findings.refuse(Reason::CpuOwner { cpu, owner });
                }
                if entry.runs_prime {
                    self.findings.refuse(Reason::CpuRunsPrime { cpu });
                }
                if entry.is_bsp {
                    self.findings.refuse(Reason::CpuBootstrap { cpu });
                }
            }
            if !found {
                self.findings.refuse(Reason::CpuMissing { cpu });
            }
            push(&mut self.plan.cpus, cpu, List::Cpus, self.findings);
        }
    }

    /// Takes whole cores while they fit, those with most threads first, then threads; of both
    /// first what is like the reference. The numbers of threads that cores have are powers of two,
    /// so this finds whole cores wherever they can make up the number.
    fn choose_cpus(&mut self, count: u32) {
        let free = self.machine.free_cpus().count();
        let asked = usize::try_from(count).unwrap_or(usize::MAX);
        if asked > free {
            self.findings.refuse(Reason::TooFewCpus {
                asked: count,
                free: u32::try_from(free).unwrap_or(u32::MAX),
            });
            return;
        }
        if asked > Plan::MAX_CPUS {
            self.findings.refuse(Reason::TooMany {
                list: List::Cpus,
                most: Plan::MAX_CPUS,
            });
            return;
        }
        let widest = self
            .machine
            .free_cpus()
            .map(|cpu| self.machine.core(cpu.core).count())
            .max()
            .unwrap_or(0);
        for only_like in [true, false] {
            for threads in (1..=widest.min(asked)).rev() {
                self.choose_cores(asked, threads, only_like);
            }
            for cpu in self.machine.free_cpus() {
                if self.plan.cpus.len() < asked && (!only_like || self.is_like(cpu)) {
                    self.choose(cpu.apic_id);
                }
            }
        }
    }

    fn choose_cores(&mut self, asked: usize, threads: usize, only_like: bool) {
        for cpu in self.machine.free_cpus() {
            let left = asked.saturating_sub(self.plan.cpus.len());
            let core = || self.machine.core(cpu.core);
            let whole = |cpu: &Cpu| {
                self.machine.cpu_is_free(cpu.apic_id)
                    && (!only_like || self.is_like(cpu))
                    && !self.plan.cpus.contains(&cpu.apic_id)
            };
            if threads <= left && core().count() == threads && core().all(whole) {
                for cpu in core() {
                    self.choose(cpu.apic_id);
                }
            }
        }
    }

    fn choose(&mut self, cpu: ApicId) {
        if !self.plan.cpus.contains(&cpu) {
            push(&mut self.plan.cpus, cpu, List::Cpus, self.findings);
        }
    }

    fn is_like(&self, cpu: &Cpu) -> bool {
        self.machine.reference_cpu().is_none_or(|reference| {
            (reference.features, reference.microcode) == (cpu.features, cpu.microcode)
        })
    }

    fn compare_cpus(&mut self) {
        let strict = self.request.strict;
        let Some(reference) = self.machine.reference_cpu() else {
            return;
        };
        let chosen = |cpu: ApicId| self.plan.cpus.contains(&cpu);
        for entry in self.machine.cpus.iter().filter(|cpu| chosen(cpu.apic_id)) {
            let cpu = entry.apic_id;
            for other in self.machine.core(entry.core) {
                let sibling = other.apic_id;
                if !chosen(sibling) {
                    self.findings
                        .doubt(strict, Reason::SmtSplit { cpu, sibling });
                }
            }
            let other = reference.apic_id;
            if entry.features != reference.features {
                self.findings
                    .doubt(strict, Reason::CpuFeatures { cpu, other });
            }
            if entry.microcode != reference.microcode {
                self.findings
                    .doubt(strict, Reason::CpuMicrocode { cpu, other });
            }
        }
    }
}
