//! Builds, runs, measures and tests Baton. `cargo xtask help` lists the commands.

mod baseline;
mod bench;
mod build;
mod client;
mod console;
mod demo;
mod event;
mod holes;
mod machine;
mod mutants;
mod paths;
mod pcap;
mod picture;
mod process;
mod qmp;
mod report;
mod session;
mod setup;
mod test;
mod trace;
mod ui;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Report;
use setup::SetupOptions;
use ui::Screen;

#[derive(Parser)]
#[command(name = "cargo xtask", about, disable_version_flag = true)]
struct Arguments {
    #[command(flatten)]
    setup: SetupOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing.
    Setup,
    /// Build the example kernels and the archive of images.
    Build,
    /// Test everything.
    Test(test::TestOptions),
    /// Measure a swap beside kexec and a firmware reboot of a stock kernel.
    Bench(bench::BenchOptions),
    /// Draw the picture of a report again.
    Picture {
        /// The report.
        report: PathBuf,
        /// Where the picture goes.
        to: PathBuf,
    },
    /// Swap a running kernel for another under a live network service, in an emulated machine.
    Demo(demo::DemoOptions),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let screen = Screen::new();
    match run(&arguments, &screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.line(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, screen: &Screen) -> anyhow::Result<()> {
    match &arguments.command {
        Command::Picture { report, to } => {
            return picture::write(&Report::read(report)?, to);
        }
        Command::Test(options) if options.list => {
            test::list();
            return Ok(());
        }
        _ => {}
    }
    let toolchain = setup::run(&arguments.setup, screen)?;
    match &arguments.command {
        Command::Setup | Command::Picture { .. } => {}
        Command::Build => {
            build::run(&toolchain, &build::KERNELS, screen)?;
        }
        Command::Bench(options) => bench::run(options, &toolchain, screen)?,
        Command::Demo(options) => demo::run(options, &toolchain, screen)?,
        Command::Test(options) => test::run(options, &toolchain, screen)?,
    }
    Ok(())
}
