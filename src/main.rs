//! The daemon: arguments -> [`Config`] -> [`daemon::run`].

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use condenser::config::{Config, LogFormat, Settings};
use condenser::daemon;
use condenser::notify::{Environment, ServiceManager};
use condenser::store::Store;
use tracing_subscriber::EnvFilter;

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
    /// Print the names of the networks, which are those of their bridges; needs the state of a daemon that does not run
    Networks,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Some(Command::Openapi) => {
            print!("{}", condenser::api::openapi::openapi_json());
            Ok(())
        }
        Some(Command::Networks) => print_networks(arguments),
        None => run(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("condenser: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_networks(arguments: Arguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.settings, arguments.config.as_deref())?;
    let store = Store::open(&config.database())?;
    for network in store.snapshot().networks().iter() {
        println!("{}", network.name);
    }
    Ok(())
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
    let filter = EnvFilter::try_new(&config.log_level).with_context(|| format!("log_level {:?}", config.log_level))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
