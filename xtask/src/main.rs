//! Builds, runs, measures and tests Baton. `cargo xtask help` lists the commands.

mod baseline;
mod bench;
mod build;
mod capture;
mod client;
mod console;
mod coverage;
mod demo;
mod event;
mod fuzz;
mod holes;
mod inspect;
mod linux;
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
    /// Show what firmware tables, captures, memory maps and handoffs say, and what is wrong with them.
    Inspect(inspect::Options),
    /// Take this machine's own firmware tables into one file (Linux, as root).
    Capture(capture::CaptureOptions),
    /// Run all fuzz targets in turn, and fail on a finding.
    Fuzz(fuzz::FuzzOptions),
    /// Count the lines of parsers, filter, planner and ledger that the tests run.
    Coverage,
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
        Command::Inspect(options) => return inspect::run(options),
        Command::Capture(options) => return capture::run(options, screen),
        Command::Fuzz(options) => return fuzz::run(options, screen),
        Command::Coverage => return coverage::run(arguments.setup.no_install, screen),
        Command::Test(options) if options.list => {
            test::list();
            return Ok(());
        }
        _ => {}
    }
    let tools = match &arguments.command {
        Command::Demo(options) => options.boot.tools().collect(),
        Command::Test(options) => test::tools(options),
        _ => Vec::new(),
    };
    let toolchain = setup::run(&arguments.setup, &tools, screen)?;
    match &arguments.command {
        // These need nothing to be set up, and are done.
        Command::Setup | Command::Picture { .. } => {}
        Command::Inspect(_) | Command::Capture(_) | Command::Fuzz(_) | Command::Coverage => {}
        Command::Build => {
            build::run(&toolchain, &build::KERNELS, screen)?;
        }
        Command::Bench(options) => bench::run(options, &toolchain, screen)?,
        Command::Demo(options) => demo::run(options, &toolchain, screen)?,
        Command::Test(options) => test::run(options, &toolchain, screen)?,
    }
    Ok(())
}
