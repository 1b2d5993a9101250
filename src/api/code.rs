//! Error codes for programs (`docs/spec/errors.md`) and their HTTP statuses.
//!
//! Messages may change, and one status covers many causes; a code is never changed or removed. Add a new code for a new
//! cause that programs must be able to distinguish.

use axum::http::StatusCode;
use serde::{Serialize, Serializer};
use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $word:literal, $status:ident;)+) => {
        /// The cause of a failure.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])+ $name,)+
        }

        impl Code {
            /// Every code, in the order of `docs/spec/errors.md`.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The code on the wire.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// The HTTP status of every failure with this code.
            pub const fn status(self) -> StatusCode {
                match self {
                    $(Self::$name => StatusCode::$status,)+
                }
            }
        }
    };
}

codes! {
    /// The body cannot be parsed, or does not match the route.
    InvalidBody = "invalid_body", BAD_REQUEST;
    /// A query parameter is unknown, missing or invalid.
    InvalidQuery = "invalid_query", BAD_REQUEST;
    /// A path parameter is empty or invalid.
    InvalidPath = "invalid_path", BAD_REQUEST;
    /// A WebSocket handshake was expected.
    WebSocketRequired = "websocket_required", BAD_REQUEST;
    /// The body exceeds the size limit of the route.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE;
    /// The path does not exist.
    RouteNotFound = "route_not_found", NOT_FOUND;
    /// The path does not support this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED;

    /// The client sent no certificate.
    CertificateRequired = "certificate_required", UNAUTHORIZED;
    /// The certificate does not have the role that the listener requires.
    RoleDenied = "role_denied", FORBIDDEN;
    /// The origin of the page is not allowed to open a terminal.
    OriginDenied = "origin_denied", FORBIDDEN;
    /// The certificate does not belong to the container of the hook.
    ReporterDenied = "reporter_denied", FORBIDDEN;
    /// The hook does not exist.
    UnknownEvent = "unknown_event", BAD_REQUEST;
    /// The hook is not allowed in the state of the container.
    UnexpectedEvent = "unexpected_event", CONFLICT;
    /// The body is not a certificate signing request, or is not signed with its own key.
    InvalidCsr = "invalid_csr", BAD_REQUEST;
    /// The subject of the signing request gets no certificate from this route, or not in its state.
    CsrDenied = "csr_denied", FORBIDDEN;
    /// The certificate could not be created.
    CertificateFailed = "certificate_failed", INTERNAL_SERVER_ERROR;

    /// The name is invalid, missing, or the id of another object.
    InvalidName = "invalid_name", BAD_REQUEST;
    /// Another object has the name.
    NameTaken = "name_taken", CONFLICT;
    /// The value is invalid, or conflicts with another one.
    InvalidOption = "invalid_option", BAD_REQUEST;
    /// The mount is invalid or not allowed.
    InvalidMount = "invalid_mount", BAD_REQUEST;
    /// The port is invalid.
    InvalidPort = "invalid_port", BAD_REQUEST;
    /// Another container or program uses the host port.
    PortTaken = "port_taken", CONFLICT;
    /// Neither the request nor the image has a command.
    CommandMissing = "command_missing", BAD_REQUEST;
    /// The image runs as root, but the container must not.
    RunsAsRoot = "runs_as_root", BAD_REQUEST;
    /// The image has no such user or group.
    UnknownUser = "unknown_user", BAD_REQUEST;
    /// The command or a mount is incompatible with the image.
    RuntimeRefused = "runtime_refused", BAD_REQUEST;

    /// No container has that name or id.
    ContainerNotFound = "container_not_found", NOT_FOUND;
    /// The id prefix matches several containers.
    ContainerAmbiguous = "container_ambiguous", CONFLICT;
    /// The container is already running.
    AlreadyStarted = "already_started", CONFLICT;
    /// The state of the container does not allow it.
    WrongState = "wrong_state", CONFLICT;
    /// The container is not running.
    NotRunning = "not_running", CONFLICT;
    /// The container has no terminal.
    NoTerminal = "no_terminal", CONFLICT;
    /// The terminal has the maximum number of clients.
    TooManyClients = "too_many_clients", CONFLICT;
    /// The container belongs to a bottle.
    ManagedByBottle = "managed_by_bottle", CONFLICT;

    /// The image reference is invalid.
    InvalidImageReference = "invalid_image_reference", BAD_REQUEST;
    /// The archive is not one of images, or the images in it are invalid.
    InvalidImageArchive = "invalid_image_archive", BAD_REQUEST;
    /// The image is not in the local store.
    ImageNotFound = "image_not_found", NOT_FOUND;
    /// The registry does not have the image.
    ManifestNotFound = "manifest_not_found", NOT_FOUND;
    /// The image is not available for the platform.
    PlatformNotFound = "platform_not_found", NOT_FOUND;
    /// The reference is not a container image.
    NotAnImage = "not_an_image", BAD_REQUEST;
    /// The image was removed or replaced during the operation.
    ImageGone = "image_gone", CONFLICT;
    /// A container uses the image.
    ImageInUse = "image_in_use", CONFLICT;
    /// A layer of the image is missing on this host.
    LayerLost = "layer_lost", CONFLICT;
    /// The image is invalid, or tries to write outside its directory.
    BadImage = "bad_image", BAD_GATEWAY;
    /// The image does not fit on the disk.
    DiskFull = "disk_full", INSUFFICIENT_STORAGE;
    /// The registry refused the credentials.
    RegistryDenied = "registry_denied", BAD_GATEWAY;
    /// The registry limits the request rate.
    RegistryLimited = "registry_limited", BAD_GATEWAY;
    /// The registry cannot be reached or returned an invalid answer.
    RegistryFailed = "registry_failed", BAD_GATEWAY;

    /// The archive of the build context is refused.
    InvalidBuildContext = "invalid_build_context", BAD_REQUEST;
    /// The build file is missing or invalid.
    InvalidBuildFile = "invalid_build_file", BAD_REQUEST;
    /// A build step cannot be executed.
    BuildStepRefused = "build_step_refused", BAD_REQUEST;
    /// A build command failed.
    BuildCommandFailed = "build_command_failed", BAD_REQUEST;
    /// A build command exceeded the time limit.
    BuildCommandTimeout = "build_command_timeout", BAD_REQUEST;

    /// No such network.
    NetworkNotFound = "network_not_found", NOT_FOUND;
    /// Containers are in the network.
    NetworkInUse = "network_in_use", CONFLICT;
    /// The default network cannot be deleted.
    DefaultNetwork = "default_network", CONFLICT;
    /// The network has no free address.
    AddressesExhausted = "addresses_exhausted", CONFLICT;
    /// No subnet is left for another network.
    SubnetsExhausted = "subnets_exhausted", CONFLICT;

    /// No such pod.
    PodNotFound = "pod_not_found", NOT_FOUND;
    /// The pod specification is invalid.
    InvalidPod = "invalid_pod", BAD_REQUEST;
    /// The pod has not been started.
    PodNotRunning = "pod_not_running", CONFLICT;
    /// The pod belongs to a replica set.
    ManagedByReplicaSet = "managed_by_replica_set", CONFLICT;
    /// Concurrent changes of the pod prevented the operation.
    PodUnsettled = "pod_unsettled", CONFLICT;
    /// No such replica set.
    ReplicaSetNotFound = "replica_set_not_found", NOT_FOUND;
    /// No such service.
    ServiceNotFound = "service_not_found", NOT_FOUND;
    /// The manifest is invalid.
    InvalidManifest = "invalid_manifest", BAD_REQUEST;
    /// The kind of the manifest is not supported.
    UnsupportedKind = "unsupported_kind", BAD_REQUEST;

    /// No such bottle.
    BottleNotFound = "bottle_not_found", NOT_FOUND;
    /// The bottle file is invalid.
    InvalidBottle = "invalid_bottle", BAD_REQUEST;
    /// A service of the bottle did not become healthy.
    NotHealthy = "not_healthy", CONFLICT;
    /// The object is being deleted.
    BeingRemoved = "being_removed", CONFLICT;

    /// No such policy.
    PolicyNotFound = "policy_not_found", NOT_FOUND;
    /// No such policy chain.
    ChainNotFound = "chain_not_found", NOT_FOUND;
    /// The policy or mode is invalid.
    InvalidPolicy = "invalid_policy", BAD_REQUEST;
    /// The same policy already exists.
    PolicyExists = "policy_exists", CONFLICT;
    /// The mode is already in force.
    ModeAlreadySet = "mode_already_set", CONFLICT;
    /// The source or destination does not exist.
    EndNotFound = "end_not_found", NOT_FOUND;
    /// The source or destination has no address yet.
    EndWithoutAddress = "end_without_address", NOT_FOUND;

    /// The low-level runtime failed.
    RuntimeFailed = "runtime_failed", INTERNAL_SERVER_ERROR;
    /// AppArmor is required but not available.
    AppArmorUnavailable = "apparmor_unavailable", INTERNAL_SERVER_ERROR;
    /// The kernel refused a port.
    PortFailed = "port_failed", INTERNAL_SERVER_ERROR;
    /// The kernel refused a change of links, addresses or parameters.
    NetworkFailed = "network_failed", INTERNAL_SERVER_ERROR;
    /// The packet filter refused the rules.
    FirewallFailed = "firewall_failed", INTERNAL_SERVER_ERROR;
    /// The state could not be written.
    StoreFailed = "store_failed", INTERNAL_SERVER_ERROR;
    /// Files could not be read or written.
    FilesFailed = "files_failed", INTERNAL_SERVER_ERROR;
    /// An object could not be removed completely.
    RemovalFailed = "removal_failed", INTERNAL_SERVER_ERROR;
    /// The daemon is shutting down, or the client has disconnected.
    Cancelled = "cancelled", INTERNAL_SERVER_ERROR;
    /// A bug in the daemon.
    Internal = "internal", INTERNAL_SERVER_ERROR;
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        let words = Self::ALL.iter().map(|code| Value::from(code.word()));
        let object = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The cause of a failure; later versions may know more."))
            .enum_values(Some(words));
        Schema::Object(object.build()).into()
    }
}

impl ToSchema for Code {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;

    fn read(path: &str) -> String {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    /// The text of the sources below a directory, without this file.
    fn sources(directory: &Path, text: &mut String) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else if !path.ends_with(Path::new(file!()).file_name().unwrap()) {
                text.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn a_word_stands_for_one_code() {
        let words: HashSet<_> = Code::ALL.iter().map(|code| code.word()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        let is_word = |word: &str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert!(words.into_iter().all(is_word));
    }

    #[test]
    fn every_code_is_in_the_specification_with_its_status_and_no_other_is() {
        let page = read("docs/spec/errors.md");
        let rows = page.lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let (word, status) = (cells.next()?.strip_suffix('`')?, cells.next()?);
            assert_eq!(cells.count(), 2, "when and what to do: {line}");
            Some(format!("{word} {status}"))
        });
        let codes = Code::ALL.iter().map(|c| format!("{c} {}", c.status().as_u16()));
        assert_eq!(rows.collect::<Vec<_>>(), codes.collect::<Vec<_>>());
    }

    #[test]
    fn every_code_is_given_by_something() {
        let mut text = String::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        let unused = |code: &&Code| {
            let name = format!("Code::{code:?}");
            !text.match_indices(&name).any(|(at, _)| {
                let next = text[at + name.len()..].chars().next();
                next.is_some_and(|c| !c.is_alphanumeric())
            })
        };
        assert_eq!(
            Code::ALL.iter().filter(unused).collect::<Vec<_>>(),
            [&Code::Internal; 0]
        );
    }

    #[test]
    fn the_schema_lists_the_words() {
        let schema = serde_json::to_value(Code::schema()).unwrap();
        assert_eq!(schema["enum"].as_array().unwrap().len(), Code::ALL.len());
        assert_eq!(schema["enum"][0], serde_json::to_value(Code::InvalidBody).unwrap());
    }
}
