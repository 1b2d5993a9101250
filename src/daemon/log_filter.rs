//! The filter of the daemon's own log.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Directive, LevelFilter, ParseError};

/// Libraries that log a warning for each message that they reject: whoever sends messages could flood the log. Our
/// own code logs the consequences.
const NOISY: [&str; 2] = ["netlink_proto", "rustls"];

/// The filter of `log_level`. Libraries whose logging is controlled by remote parties only log errors, unless it
/// names them.
pub fn log_filter(log_level: &str) -> Result<EnvFilter, ParseError> {
    let mut filter = EnvFilter::try_new(log_level)?;
    if filter.max_level_hint() <= Some(LevelFilter::ERROR) {
        // Warnings are off already: do not raise the level.
        return Ok(filter);
    }
    for name in NOISY.into_iter().filter(|name| !log_level.contains(name)) {
        let only_errors: Directive = format!("{name}=error").parse()?;
        filter = filter.add_directive(only_errors);
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The part that is logged of one event of each kind.
    fn logged(log_level: &str) -> Vec<String> {
        let buffer = Buffer::default();
        let written = buffer.clone();
        let log = tracing_subscriber::fmt()
            .with_env_filter(log_filter(log_level).unwrap())
            .with_writer(move || buffer.clone())
            .without_time()
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::debug!(target: "condenser::image", "1");
            tracing::info!(target: "condenser", "2");
            tracing::warn!(target: "netlink_proto::connection", "3");
            tracing::error!(target: "netlink_proto::connection", "4");
            tracing::warn!(target: "rustls::conn", "5");
            tracing::warn!(target: "hyper", "6");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| line[line.len() - 1..].to_owned()).collect()
    }

    #[test]
    fn libraries_do_not_fill_the_log() {
        assert_eq!(logged("info"), ["2", "4", "6"]);
        assert_eq!(logged("debug"), ["1", "2", "4", "6"]);
        assert_eq!(logged("warn,condenser::image=debug"), ["1", "4", "6"]);
    }

    #[test]
    fn who_names_a_library_hears_it() {
        assert_eq!(logged("info,netlink_proto=warn"), ["2", "3", "4", "6"]);
        assert_eq!(logged("info,rustls=warn"), ["2", "4", "5", "6"]);
    }

    #[test]
    fn silence_stays_silence() {
        assert_eq!(logged("off"), Vec::<String>::new());
        assert_eq!(logged("error"), ["4"]);
        assert!(log_filter("info,condenser=loud").is_err());
    }
}
