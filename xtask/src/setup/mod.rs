//! Set-up: finds out what is missing and installs it.
//!
//! What to do next is decided by [`next`] from a handful of facts, apart from the code that finds the
//! facts and does the work. So the decisions are tested on any machine.

mod facts;
mod install;
mod toolchain;

use anyhow::{Result, bail};

pub(crate) use facts::qemu_version;
pub(crate) use toolchain::{KERNEL_TARGET, Toolchain, UEFI_TARGET, has_target};

use crate::ui::Screen;
use facts::{Facts, Privilege};

/// Where core for the kernels comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Source {
    /// rustup's ready-made target where it is there or can be added, else the distribution's source
    /// packages. What is there already is used first.
    Auto,
    /// rustup's ready-made target only.
    Rustup,
    /// The distribution's compiler, which builds core from the distribution's source package.
    Distribution,
}

/// What the set-up may do.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SetupOptions {
    /// Where core for the kernels comes from.
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        env = "BATON_TOOLCHAIN",
        global = true
    )]
    pub(crate) toolchain: Source,
    /// Install nothing: say what is missing and stop.
    #[arg(long, env = "BATON_NO_INSTALL", global = true)]
    pub(crate) no_install: bool,
}

/// Something that only some machines are built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    /// GRUB, and what it makes disks with.
    Grub,
    /// UEFI for the emulator, and what makes disks for it.
    Ovmf,
    /// Core for what UEFI starts.
    UefiTarget,
}

/// One thing to install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Install these packages with apt.
    Packages(Vec<&'static str>),
    /// Add this target to rustup's toolchain.
    RustupTarget(&'static str),
}

impl Action {
    /// The command that does it, to be typed by a person who may.
    fn by_hand(&self) -> String {
        match self {
            Self::Packages(names) => format!(
                "sudo apt-get install --no-install-recommends {}",
                names.join(" ")
            ),
            Self::RustupTarget(target) => format!("rustup target add {target}"),
        }
    }
}

/// Why the set-up cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// Something is missing that may not be installed from here.
    NotAllowed(Action),
    /// rustup was asked for this target and there is no rustup, or it failed.
    NoRustup(&'static str),
}

/// The next thing to do, or `None` where nothing is missing.
fn next(facts: &Facts, options: &SetupOptions) -> std::result::Result<Option<Action>, Obstacle> {
    let mut packages = Vec::new();
    if !facts.qemu {
        packages.push("qemu-system-x86");
    }
    packages.extend(facts.tools_missing.iter().flat_map(|tool| tool.packages()));
    let from_rustup = match options.toolchain {
        Source::Rustup => true,
        Source::Distribution => false,
        // Where the distribution has everything already, nothing is missing: rustup is not asked
        // again on each run for what it could not give on the first.
        Source::Auto => {
            let distribution = facts.distribution_missing.is_empty();
            facts.target || (facts.rustup && !facts.rustup_failed && !distribution)
        }
    };
    if !from_rustup {
        packages.extend(facts.distribution_missing.iter().copied());
    }
    if !packages.is_empty() {
        let action = Action::Packages(packages);
        let allowed = !options.no_install && facts.apt && facts.privilege != Privilege::None;
        return if allowed {
            Ok(Some(action))
        } else {
            Err(Obstacle::NotAllowed(action))
        };
    }
    // The distribution's compiler builds core for any target.
    let uefi = facts.tools_missing.contains(&Tool::UefiTarget);
    let missing = [(KERNEL_TARGET, !facts.target), (UEFI_TARGET, uefi)];
    let missing = missing.into_iter().find(|&(_, missing)| missing);
    if let Some((target, _)) = missing.filter(|_| from_rustup) {
        if !facts.rustup || facts.rustup_failed {
            return Err(Obstacle::NoRustup(target));
        }
        let action = Action::RustupTarget(target);
        return if options.no_install {
            Err(Obstacle::NotAllowed(action))
        } else {
            Ok(Some(action))
        };
    }
    Ok(None)
}

/// Installs what is missing, `tools` among it, and returns the toolchain to build kernels with.
pub(crate) fn run(options: &SetupOptions, tools: &[Tool], screen: &Screen) -> Result<Toolchain> {
    let step = screen.step("Set-up");
    let mut facts = Facts::find(tools)?;
    let mut installed = Vec::new();
    loop {
        match next(&facts, options) {
            Ok(None) => break,
            Ok(Some(action)) => {
                if installed.contains(&action) {
                    step.failed("incomplete");
                    bail!(
                        "`{}` was run, but what it should install is still missing",
                        action.by_hand()
                    );
                }
                match &action {
                    Action::Packages(names) => {
                        screen.detail(&format!("installing with apt: {}", names.join(" ")));
                        install::packages(names, facts.privilege, &step)?;
                    }
                    Action::RustupTarget(target) => {
                        screen.detail(&format!("adding the target {target} with rustup"));
                        if let Err(error) = install::rustup_target(target, &step) {
                            screen.detail(&format!("rustup could not: {error:#}"));
                            facts.rustup_failed = true;
                            continue;
                        }
                    }
                }
                installed.push(action);
                facts = Facts {
                    rustup_failed: facts.rustup_failed,
                    ..Facts::find(tools)?
                };
            }
            Err(Obstacle::NotAllowed(action)) => {
                step.failed("something is missing");
                bail!(
                    "something is missing that cannot be installed from here; run by hand:\n    {}",
                    action.by_hand()
                );
            }
            Err(Obstacle::NoRustup(target)) => {
                step.failed("no rustup");
                bail!(
                    "the target {target} is missing and rustup cannot add it; run by hand:\n    \
                     rustup target add {target}\nor let the distribution's packages serve: \
                     --toolchain distribution"
                );
            }
        }
    }
    let toolchain = Toolchain::choose(&facts, options.toolchain)?;
    let what = if installed.is_empty() {
        "nothing to install"
    } else {
        "installed what was missing"
    };
    step.done(&format!("{what}; {}; {toolchain}", facts::qemu_version()?));
    Ok(toolchain)
}

#[cfg(test)]
mod tests {
    use super::facts::{Facts, Privilege};
    use super::{Action, KERNEL_TARGET, Obstacle, SetupOptions, Source, Tool, UEFI_TARGET, next};

    fn complete() -> Facts {
        Facts {
            qemu: true,
            tools_missing: Vec::new(),
            target: true,
            rustup: true,
            rustup_failed: false,
            distribution_missing: vec!["rustc-web", "lld"],
            apt: true,
            privilege: Privilege::Root,
        }
    }

    fn options(toolchain: Source, no_install: bool) -> SetupOptions {
        SetupOptions {
            toolchain,
            no_install,
        }
    }

    #[test]
    fn a_complete_machine_needs_nothing() {
        assert_eq!(next(&complete(), &options(Source::Auto, false)), Ok(None));
    }

    #[test]
    fn a_missing_emulator_is_installed_with_apt() {
        let facts = Facts {
            qemu: false,
            ..complete()
        };
        assert_eq!(
            next(&facts, &options(Source::Auto, false)),
            Ok(Some(Action::Packages(vec!["qemu-system-x86"])))
        );
    }

    #[test]
    fn what_only_some_machines_need_is_installed_for_these() {
        let facts = Facts {
            tools_missing: vec![Tool::Grub, Tool::Ovmf],
            ..complete()
        };
        let Ok(Some(Action::Packages(names))) = next(&facts, &options(Source::Auto, false)) else {
            panic!("packages are missing");
        };
        assert!(names.contains(&"grub-pc-bin") && names.contains(&"ovmf"));
    }

    #[test]
    fn the_target_of_what_uefi_starts_is_added_where_it_is_wanted() {
        let facts = Facts {
            tools_missing: vec![Tool::UefiTarget],
            ..complete()
        };
        assert_eq!(
            next(&facts, &options(Source::Auto, false)),
            Ok(Some(Action::RustupTarget(UEFI_TARGET)))
        );
        // The distribution's compiler builds core for it.
        assert_eq!(
            next(
                &Facts {
                    distribution_missing: Vec::new(),
                    ..facts
                },
                &options(Source::Distribution, false)
            ),
            Ok(None)
        );
    }

    #[test]
    fn without_the_right_to_install_the_command_is_named() {
        for facts in [
            Facts {
                privilege: Privilege::None,
                qemu: false,
                ..complete()
            },
            Facts {
                apt: false,
                qemu: false,
                ..complete()
            },
        ] {
            let Err(Obstacle::NotAllowed(action)) = next(&facts, &options(Source::Auto, false))
            else {
                panic!("must be refused");
            };
            assert_eq!(
                action.by_hand(),
                "sudo apt-get install --no-install-recommends qemu-system-x86"
            );
        }
    }

    #[test]
    fn a_missing_target_comes_from_rustup_first() {
        let facts = Facts {
            target: false,
            ..complete()
        };
        assert_eq!(
            next(&facts, &options(Source::Auto, false)),
            Ok(Some(Action::RustupTarget(KERNEL_TARGET)))
        );
    }

    #[test]
    fn where_rustup_cannot_the_distribution_serves() {
        let facts = Facts {
            target: false,
            rustup_failed: true,
            ..complete()
        };
        assert_eq!(
            next(&facts, &options(Source::Auto, false)),
            Ok(Some(Action::Packages(vec!["rustc-web", "lld"])))
        );
        let without_rustup = Facts {
            rustup: false,
            rustup_failed: false,
            ..facts
        };
        assert_eq!(
            next(&without_rustup, &options(Source::Auto, false)),
            Ok(Some(Action::Packages(vec!["rustc-web", "lld"])))
        );
    }

    #[test]
    fn the_distribution_is_complete_with_its_packages() {
        let facts = Facts {
            target: false,
            rustup: false,
            distribution_missing: Vec::new(),
            ..complete()
        };
        assert_eq!(next(&facts, &options(Source::Auto, false)), Ok(None));
    }

    #[test]
    fn a_complete_distribution_is_used_before_rustup_is_asked_for_more() {
        let facts = Facts {
            target: false,
            distribution_missing: Vec::new(),
            ..complete()
        };
        for no_install in [false, true] {
            assert_eq!(next(&facts, &options(Source::Auto, no_install)), Ok(None));
        }
        assert_eq!(
            next(&facts, &options(Source::Rustup, false)),
            Ok(Some(Action::RustupTarget(KERNEL_TARGET)))
        );
    }

    #[test]
    fn rustup_alone_does_not_fall_back() {
        let facts = Facts {
            target: false,
            rustup_failed: true,
            ..complete()
        };
        assert_eq!(
            next(&facts, &options(Source::Rustup, false)),
            Err(Obstacle::NoRustup(KERNEL_TARGET))
        );
    }

    #[test]
    fn no_install_installs_nothing_at_all() {
        let facts = Facts {
            target: false,
            ..complete()
        };
        assert_eq!(
            next(&facts, &options(Source::Auto, true)),
            Err(Obstacle::NotAllowed(Action::RustupTarget(KERNEL_TARGET)))
        );
    }
}
