//! Downloads a file that is no part of an image: the source of an `ADD`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use reqwest::Url;
use reqwest::header::LAST_MODIFIED;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use super::source::chain;
use crate::image::ImageService;
use crate::image::digest::Digest;
use crate::ops::task;

/// Mode of downloaded files, as Docker makes them.
const MODE: u32 = 0o600;

impl ImageService {
    /// Downloads `url` into the new file `into`, with mode 0600 and the time that the server gives, or else that of the
    /// epoch. Returns its digest (`sha256:…`), or a sentence that says why not. Without credentials.
    pub async fn fetch(&self, url: &str, into: PathBuf, limit: u64) -> Result<String, String> {
        let url = Url::parse(url).map_err(|e| format!("it is no URL: {e}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "a URL with a user name or a password would be kept in the history; use a secret in a RUN".into(),
            );
        }
        let host = url.host_str().unwrap_or_default().to_owned();
        let clients = self.0.registry.clients.clone();
        let pair = task::blocking(move || clients.get(&host, &[]).map_err(std::io::Error::other));
        let client = pair.await.map_err(|e| e.to_string())?.follows;
        let mut response = client.get(url).send().await.map_err(chain)?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("the server answers {status}"));
        }
        let header = response
            .headers()
            .get(LAST_MODIFIED)
            .and_then(|value| value.to_str().ok());
        let modified = header.and_then(time).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut options = fs_err::tokio::OpenOptions::new();
        options.write(true).create_new(true).mode(MODE);
        let mut file = options.open(&into).await.map_err(|e| e.to_string())?;
        let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
        while let Some(chunk) = response.chunk().await.map_err(chain)? {
            bytes += chunk.len() as u64;
            if bytes > limit {
                return Err(format!("it is larger than {limit} bytes (max_build_bytes)"));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(|e| e.to_string())?;
        }
        file.flush().await.map_err(|e| e.to_string())?;
        let file = file.into_parts().0.into_std().await;
        let timed = task::blocking(move || file.set_modified(modified));
        timed.await.map_err(|e| e.to_string())?;
        Ok(Digest::finish(hash).to_string())
    }
}

/// An HTTP date.
fn time(text: &str) -> Option<SystemTime> {
    let seconds = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_second();
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_server() {
        let wanted = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(time("Sun, 06 Nov 1994 08:49:37 GMT"), Some(wanted));
        assert_eq!(time("yesterday"), None);
    }
}
