//! Sends a request to the daemon with the credentials of the options.

use std::path::Path;

use condenser::base::cause::Cause;

use crate::client::{self, Response};
use crate::error::AgentError;
use crate::options::Options;

/// Posts `body` to the daemon.
#[expect(clippy::disallowed_methods, reason = "the error names the file already")]
pub fn post(options: &Options, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Response, AgentError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|e| AgentError::Client(Cause::new(format!("{}: {e}", path.display()))))
    };
    let (ca, certificate, key) = (read(&options.ca)?, read(&options.cert)?, read(&options.key)?);
    let tls = client::tls_config(&ca, &certificate, &key).map_err(|e| AgentError::Client(e.into()))?;
    Ok(client::post(&options.url, tls, headers, body)?)
}
