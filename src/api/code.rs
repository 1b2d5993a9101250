//! What failed, as a word for programs (`docs/spec/errors.md`), and the status that goes with it.
//!
//! A sentence may change, and one status stands for many causes; a code neither changes nor goes away. A new cause that
//! programs should tell from others gets a new code.

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

            /// The word on the wire.
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
    /// The body cannot be read, or does not have the form of the route.
    InvalidBody = "invalid_body", BAD_REQUEST;
    /// A parameter of the query is unknown, missing or wrong.
    InvalidQuery = "invalid_query", BAD_REQUEST;
    /// A parameter in the path is empty or wrong.
    InvalidPath = "invalid_path", BAD_REQUEST;
    /// A WebSocket handshake was expected.
    WebSocketRequired = "websocket_required", BAD_REQUEST;
    /// The body is longer than the route takes.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE;
    /// There is no such path.
    RouteNotFound = "route_not_found", NOT_FOUND;
    /// The path is there, but not for this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED;

    /// The client showed no certificate.
    CertificateRequired = "certificate_required", UNAUTHORIZED;
    /// The certificate has another role than the listener serves.
    RoleDenied = "role_denied", FORBIDDEN;
    /// A page of another site may not open a terminal.
    OriginDenied = "origin_denied", FORBIDDEN;
    /// The certificate does not speak for the container that a hook is about.
    ReporterDenied = "reporter_denied", FORBIDDEN;
    /// A hook that does not exist.
    UnknownEvent = "unknown_event", BAD_REQUEST;
    /// A hook that cannot occur in the state of the container.
    UnexpectedEvent = "unexpected_event", CONFLICT;
    /// Not a signing request, or not signed with its own key.
    InvalidCsr = "invalid_csr", BAD_REQUEST;
    /// A signing request for somebody who gets no certificate this way, or not now.
    CsrDenied = "csr_denied", FORBIDDEN;
    /// A certificate could not be made.
    CertificateFailed = "certificate_failed", INTERNAL_SERVER_ERROR;

    /// A name outside its grammar, missing, or the id of something else.
    InvalidName = "invalid_name", BAD_REQUEST;
    /// Another object has the name.
    NameTaken = "name_taken", CONFLICT;
    /// A value that cannot be, or that excludes another.
    InvalidOption = "invalid_option", BAD_REQUEST;
    /// A mount that is malformed or not allowed.
    InvalidMount = "invalid_mount", BAD_REQUEST;
    /// A port that is malformed or cannot be.
    InvalidPort = "invalid_port", BAD_REQUEST;
    /// Somebody else has a port of the host.
    PortTaken = "port_taken", CONFLICT;
    /// Nobody says which program to run.
    CommandMissing = "command_missing", BAD_REQUEST;
    /// The image runs as root, and the container must not.
    RunsAsRoot = "runs_as_root", BAD_REQUEST;
    /// The image has no such user or group.
    UnknownUser = "unknown_user", BAD_REQUEST;
    /// What is to run or to be mounted does not fit the image.
    RuntimeRefused = "runtime_refused", BAD_REQUEST;

    /// No container of that name or id.
    ContainerNotFound = "container_not_found", NOT_FOUND;
    /// The ids of several containers begin so.
    ContainerAmbiguous = "container_ambiguous", CONFLICT;
    /// The container runs already.
    AlreadyStarted = "already_started", CONFLICT;
    /// The state of the container does not allow it.
    WrongState = "wrong_state", CONFLICT;
    /// The container does not run.
    NotRunning = "not_running", CONFLICT;
    /// The container has no terminal.
    NoTerminal = "no_terminal", CONFLICT;
    /// A terminal has as many clients as it takes.
    TooManyClients = "too_many_clients", CONFLICT;
    /// The container is its bottle's.
    ManagedByBottle = "managed_by_bottle", CONFLICT;

    /// Not an image reference.
    InvalidImageReference = "invalid_image_reference", BAD_REQUEST;
    /// The image is not on this host.
    ImageNotFound = "image_not_found", NOT_FOUND;
    /// The registry does not have the image.
    ManifestNotFound = "manifest_not_found", NOT_FOUND;
    /// The image is not there for the platform.
    PlatformNotFound = "platform_not_found", NOT_FOUND;
    /// The reference names something else than a container image.
    NotAnImage = "not_an_image", BAD_REQUEST;
    /// The image was removed or replaced meanwhile.
    ImageGone = "image_gone", CONFLICT;
    /// A container stands on the image.
    ImageInUse = "image_in_use", CONFLICT;
    /// A layer is lost on this host.
    LayerLost = "layer_lost", CONFLICT;
    /// The image is broken or wants to write outside of itself.
    BadImage = "bad_image", BAD_GATEWAY;
    /// The registry wants other credentials.
    RegistryDenied = "registry_denied", BAD_GATEWAY;
    /// The registry wants fewer requests.
    RegistryLimited = "registry_limited", BAD_GATEWAY;
    /// The registry cannot be reached or does not answer as it should.
    RegistryFailed = "registry_failed", BAD_GATEWAY;

    /// The archive with the files for a build is not taken.
    InvalidBuildContext = "invalid_build_context", BAD_REQUEST;
    /// The build file is missing or wrong.
    InvalidBuildFile = "invalid_build_file", BAD_REQUEST;
    /// A step of the build cannot be carried out.
    BuildStepRefused = "build_step_refused", BAD_REQUEST;
    /// A command of the build failed.
    BuildCommandFailed = "build_command_failed", BAD_REQUEST;
    /// A command of the build took too long.
    BuildCommandTimeout = "build_command_timeout", BAD_REQUEST;

    /// No such network.
    NetworkNotFound = "network_not_found", NOT_FOUND;
    /// Containers are in the network.
    NetworkInUse = "network_in_use", CONFLICT;
    /// The default network stays.
    DefaultNetwork = "default_network", CONFLICT;
    /// The network has no free address.
    AddressesExhausted = "addresses_exhausted", CONFLICT;
    /// There is no room for one more network.
    SubnetsExhausted = "subnets_exhausted", CONFLICT;

    /// No such pod.
    PodNotFound = "pod_not_found", NOT_FOUND;
    /// A pod that cannot be carried out.
    InvalidPod = "invalid_pod", BAD_REQUEST;
    /// The pod is not started.
    PodNotRunning = "pod_not_running", CONFLICT;
    /// The pod is its replica set's.
    ManagedByReplicaSet = "managed_by_replica_set", CONFLICT;
    /// Something else keeps changing the pod.
    PodUnsettled = "pod_unsettled", CONFLICT;
    /// No such replica set.
    ReplicaSetNotFound = "replica_set_not_found", NOT_FOUND;
    /// No such service.
    ServiceNotFound = "service_not_found", NOT_FOUND;
    /// A manifest that is malformed or says what cannot be.
    InvalidManifest = "invalid_manifest", BAD_REQUEST;
    /// A manifest of a kind that this daemon does not have.
    UnsupportedKind = "unsupported_kind", BAD_REQUEST;

    /// No such bottle.
    BottleNotFound = "bottle_not_found", NOT_FOUND;
    /// A bottle file that is malformed or says what cannot be.
    InvalidBottle = "invalid_bottle", BAD_REQUEST;
    /// A service of the bottle had to become healthy and did not.
    NotHealthy = "not_healthy", CONFLICT;
    /// The object is going away.
    BeingRemoved = "being_removed", CONFLICT;

    /// No such policy.
    PolicyNotFound = "policy_not_found", NOT_FOUND;
    /// No such list of policies.
    ChainNotFound = "chain_not_found", NOT_FOUND;
    /// A policy or mode that cannot be.
    InvalidPolicy = "invalid_policy", BAD_REQUEST;
    /// The same policy is there.
    PolicyExists = "policy_exists", CONFLICT;
    /// The mode is in force.
    ModeAlreadySet = "mode_already_set", CONFLICT;
    /// An end of a packet is nothing that there is.
    EndNotFound = "end_not_found", NOT_FOUND;
    /// An end of a packet has no address yet.
    EndWithoutAddress = "end_without_address", NOT_FOUND;

    /// The low-level runtime failed.
    RuntimeFailed = "runtime_failed", INTERNAL_SERVER_ERROR;
    /// AppArmor is required and cannot be had.
    AppArmorUnavailable = "apparmor_unavailable", INTERNAL_SERVER_ERROR;
    /// The kernel does not give a port.
    PortFailed = "port_failed", INTERNAL_SERVER_ERROR;
    /// The kernel refused a change of links, addresses or parameters.
    NetworkFailed = "network_failed", INTERNAL_SERVER_ERROR;
    /// The packet filter refused the rules.
    FirewallFailed = "firewall_failed", INTERNAL_SERVER_ERROR;
    /// The state could not be written.
    StoreFailed = "store_failed", INTERNAL_SERVER_ERROR;
    /// Files could not be read or written.
    FilesFailed = "files_failed", INTERNAL_SERVER_ERROR;
    /// Something could not be removed, or not all of it.
    RemovalFailed = "removal_failed", INTERNAL_SERVER_ERROR;
    /// The daemon is ending, or the client has gone.
    Cancelled = "cancelled", INTERNAL_SERVER_ERROR;
    /// A defect of the daemon.
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

    /// The sources below a directory, without this file.
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
