//! The daemon: arguments -> [`Config`] -> [`daemon::run`].

#![warn(clippy::too_many_lines)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests lay out files and run tools"
    )
)]
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use condenser::daemon;
use condenser::daemon::config::{Config, LogFormat, Settings};
use condenser::daemon::log_filter::log_filter;
use condenser::daemon::notify::{Environment, ServiceManager};

/// Condenser, a high-level container runtime for one Linux host. Without a command it runs the daemon in the foreground.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Configuration file [default: /etc/raind/condenser.toml, if it exists]
    #[arg(long, env = "CONDENSER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print the OpenAPI description of the management API
    Openapi,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Some(Command::Openapi) => print(&condenser::api::openapi::openapi_json()),
        None => run(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Unlike eprintln!, this does not panic when nobody reads.
            let _ = writeln!(std::io::stderr(), "condenser: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.settings, arguments.config.as_deref())?;
    start_log(&config)?;
    // Before anything touches TLS: with no default provider, or two, rustls panics where it is first used.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is already installed"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    Ok(runtime.block_on(async {
        let manager = ServiceManager::connect(&Environment::of_process());
        daemon::run(config, manager).await
    })?)
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = log_filter(&config.log_level).with_context(|| format!("log_level {:?}", config.log_level))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // It would tell of a broken standard error on standard error, and panic.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
