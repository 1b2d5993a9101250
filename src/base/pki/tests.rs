use std::collections::BTreeMap;
use std::process::Command;

use x509_parser::prelude::X509Certificate;

use super::csr::tests::request;
use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const ALL: [&str; 4] = ["raind", "raindClientCA", "raindClient", "raindHookClient"];

/// A certificate directory and what was in it at the last look.
struct Dir {
    dir: tempfile::TempDir,
    start: SystemTime,
}

impl Dir {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            start: SystemTime::now(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("cert")
    }

    /// A start of the daemon some days after the first one, with this host address.
    fn start(&self, days: u32, address: &str) -> Pki {
        Pki::load_at(&self.path(), &[address.parse().unwrap()], self.start + DAY * days).unwrap()
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(self.path()).unwrap().map(Result::unwrap);
        entries
            .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
            .collect()
    }

    /// Names (without ending) of the pairs that `action` changed. Both halves of each have to change together.
    fn changed<T>(&self, action: impl FnOnce() -> T) -> Vec<&'static str> {
        let before = self.files();
        action();
        let after = self.files();
        let differs = |name: &str, ending: &str| {
            let file = format!("{name}.{ending}");
            before.get(&file) != after.get(&file)
        };
        let changed = ALL.into_iter().filter(|n| differs(n, "crt")).collect::<Vec<_>>();
        let keys = ALL.into_iter().filter(|n| differs(n, "key")).collect::<Vec<_>>();
        assert_eq!(changed, keys);
        changed
    }

    fn certificates(&self, name: &str) -> Vec<CertificateDer<'static>> {
        PairFiles::new(&self.path(), name).read_certificates().unwrap().unwrap()
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.path().join(file)).unwrap();
    }
}

fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> &'a str {
    certificate
        .subject()
        .iter_common_name()
        .next()
        .unwrap()
        .as_str()
        .unwrap()
}

fn sign(pki: &Pki, id: &str) -> CertificateDer<'static> {
    let pem = request(
        &[&format!("spiffe://raind/container/{id}")],
        &KeyPair::generate().unwrap(),
    );
    let request = SigningRequest::parse(pem.as_bytes()).unwrap();
    let signed = pki.sign_container(request.container_id().unwrap(), &request).unwrap();
    CertificateDer::from(pem::parse(signed).unwrap().into_contents())
}

#[test]
fn a_first_start_makes_four_pairs_and_a_second_nothing() {
    let dir = Dir::new();
    dir.start(0, "192.0.2.2");
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(dir.path()), 0o700);
    let files = dir.files();
    assert_eq!(files.len(), 8);
    for (name, content) in &files {
        let (wanted, tag) = match name.ends_with(".key") {
            true => (0o600, "PRIVATE KEY"),
            false => (0o644, "CERTIFICATE"),
        };
        assert_eq!(mode(dir.path().join(name)), wanted, "{name}");
        assert!(
            content.starts_with(format!("-----BEGIN {tag}-----\n").as_bytes()),
            "{name}"
        );
    }
    assert!(dir.changed(|| dir.start(0, "192.0.2.2")).is_empty());
}

#[test]
fn certificates_say_what_the_contract_says() {
    let dir = Dir::new();
    let pki = dir.start(0, "192.0.2.2");
    let mut certificates: BTreeMap<&str, _> = ALL
        .iter()
        .map(|name| (*name, dir.certificates(name).remove(0)))
        .collect();
    certificates.insert("container", sign(&pki, "01kg2cnf0ytv"));
    let mut seen = Vec::new();
    for (name, der) in &certificates {
        let c = pair::parse(der).unwrap();
        let constraints = c.basic_constraints().unwrap().unwrap();
        let usage = c.key_usage().unwrap().unwrap();
        assert!(constraints.critical && usage.critical, "{name}");
        let extended = c
            .extended_key_usage()
            .unwrap()
            .map(|e| match (e.value.server_auth, e.value.client_auth) {
                (true, false) => "server",
                (false, true) => "client",
                _ => "other",
            });
        let names = c
            .subject_alternative_name()
            .unwrap()
            .map(|n| format!("{:?}", n.value.general_names));
        let validity = c.validity().not_after.timestamp() - c.validity().not_before.timestamp();
        seen.push(format!(
            "{name}: {} by {} key={} ca={} minutes={}\n  {} {extended:?} {}",
            common_name(&c),
            c.issuer().iter_common_name().next().unwrap().as_str().unwrap(),
            c.public_key().algorithm.algorithm,
            constraints.value.ca,
            validity / 60,
            usage.value,
            names.unwrap_or_else(|| "no names".into()),
        ));
        assert!(c.raw_serial().len() >= 12, "{name}: random serial");
    }
    insta::assert_snapshot!(seen.join("\n"), @r#"
    container: raind-client by raind client issuer key=1.2.840.10045.2.1 ca=false minutes=525605
      Digital Signature Some("client") [URI("spiffe://raind/container/01kg2cnf0ytv")]
    raind: raind by raind key=1.2.840.10045.2.1 ca=false minutes=2628060
      Digital Signature, Key Encipherment Some("server") [DNSName("localhost"), IPAddress([127, 0, 0, 1]), IPAddress([192, 0, 2, 2])]
    raindClient: raind-client by raind client issuer key=1.2.840.10045.2.1 ca=false minutes=525605
      Digital Signature Some("client") [URI("spiffe://raind/cli/admin")]
    raindClientCA: raind client issuer by raind client issuer key=1.2.840.10045.2.1 ca=true minutes=2628060
      Key Cert Sign, CRL Sign None no names
    raindHookClient: raind-hook-client by raind client issuer key=1.2.840.10045.2.1 ca=false minutes=525605
      Digital Signature Some("client") [URI("spiffe://raind/droplet/container")]
    "#);
}

#[test]
fn a_pair_is_replaced_thirty_days_before_its_end() {
    let dir = Dir::new();
    dir.start(0, "192.0.2.2");
    assert!(dir.changed(|| dir.start(334, "192.0.2.2")).is_empty());
    let clients = ["raindClient", "raindHookClient"];
    assert_eq!(dir.changed(|| dir.start(336, "192.0.2.2")), clients);
    assert_eq!(dir.changed(|| dir.start(5 * 365 - 31, "192.0.2.2")), clients);
    assert_eq!(dir.changed(|| dir.start(5 * 365 - 29, "192.0.2.2")), ALL);
}

#[test]
fn a_former_ca_is_trusted_until_it_ends() {
    let dir = Dir::new();
    let former = dir.start(0, "192.0.2.2");
    let end = 5 * 365;
    dir.start(end - 29, "192.0.2.2");
    let cas = dir.certificates("raindClientCA");
    assert_eq!((cas.len(), &cas[1..]), (2, former.current().authority.trusted()));
    dir.start(end + 1, "192.0.2.2");
    let now = dir.start(end + 1, "192.0.2.2");
    assert_eq!(now.current().authority.trusted(), &cas[..1]);
}

#[test]
fn a_new_address_makes_a_new_server_certificate() {
    let dir = Dir::new();
    let pki = dir.start(0, "192.0.2.2");
    let before = pki.server_config();
    let addresses = ["192.0.2.2", "2001:db8::1"].map(|a| a.parse().unwrap());
    assert_eq!(dir.changed(|| pki.renew_due(&addresses).unwrap()), ["raind"]);
    assert!(!Arc::ptr_eq(&before, &pki.server_config()), "in use at once");
    assert!(covers(&dir.certificates("raind")[0], &addresses));
    assert!(
        dir.changed(|| pki.renew_due(&addresses[1..]).unwrap()).is_empty(),
        "one less needs no new one"
    );
}

/// A server's pair as an operator would make it.
fn server_pair(addresses: &[IpAddr], now: SystemTime) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = profile::server(addresses, &key, now).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[test]
fn what_an_operator_put_there_is_taken_over() {
    let dir = Dir::new();
    let pki = dir.start(0, "192.0.2.2");
    let addresses = ["192.0.2.2".parse().unwrap()];
    let before = pki.server_config();
    let (certificate, key) = server_pair(&addresses, dir.start);
    std::fs::write(dir.path().join("raind.crt"), &certificate).unwrap();
    std::fs::write(dir.path().join("raind.key"), &key).unwrap();
    let changed = dir.changed(|| pki.reload(&addresses).unwrap());
    assert!(changed.is_empty(), "the files are the operator's: {changed:?}");
    assert!(!Arc::ptr_eq(&before, &pki.server_config()), "in use at once");

    let key = KeyPair::generate().unwrap();
    let authority = profile::authority(&key, dir.start).unwrap();
    let former = dir.files()["raindClientCA.crt"].clone();
    let both = [authority.pem().as_bytes(), &former[..]].concat();
    std::fs::write(dir.path().join("raindClientCA.crt"), both).unwrap();
    std::fs::write(dir.path().join("raindClientCA.key"), key.serialize_pem()).unwrap();
    let changed = dir.changed(|| pki.reload(&addresses).unwrap());
    assert_eq!(changed, ["raindClient", "raindHookClient"], "they are of the new CA");
    assert_eq!(
        pki.current().authority.trusted().len(),
        2,
        "containers keep the certificates that they have"
    );
}

#[test]
fn what_cannot_take_over_changes_nothing() {
    let addresses = ["192.0.2.2".parse().unwrap()];
    let old = SystemTime::now() - DAY * (5 * 365 - 29);
    let (good, other_key) = server_pair(&addresses, SystemTime::now());
    let (ending, ending_key) = server_pair(&addresses, old);
    let (elsewhere, elsewhere_key) = server_pair(&["192.0.2.9".parse().unwrap()], SystemTime::now());
    let cases: [(&str, &[(&str, &str)]); 8] = [
        ("no usable certificate", &[("raind.crt", "garbage")]),
        ("no usable private key", &[("raind.key", "garbage")]),
        ("raind.crt: its key is of another", &[("raind.crt", &good)]),
        ("within 30 days", &[("raind.crt", &ending), ("raind.key", &ending_key)]),
        (
            "does not name",
            &[("raind.crt", &elsewhere), ("raind.key", &elsewhere_key)],
        ),
        (
            "raindClientCA.crt: its key is of another",
            &[("raindClientCA.crt", &good)],
        ),
        (
            "no CA certificate",
            &[("raindClientCA.crt", &good), ("raindClientCA.key", &other_key)],
        ),
        ("no usable certificate", &[("raindClientCA.crt", "")]),
    ];
    for (reason, files) in cases {
        let dir = Dir::new();
        let pki = dir.start(0, "192.0.2.2");
        let before = pki.server_config();
        for (file, content) in files {
            std::fs::write(dir.path().join(file), content).unwrap();
        }
        let present = dir.files();
        let error = pki.reload(&addresses).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        assert_eq!(dir.files(), present, "{reason}");
        assert!(Arc::ptr_eq(&before, &pki.server_config()), "{reason}");
    }
    let dir = Dir::new();
    let pki = dir.start(0, "192.0.2.2");
    dir.remove("raind.key");
    let error = pki.reload(&addresses).unwrap_err().to_string();
    assert!(error.ends_with("raind.crt: its key is missing"), "{error}");
}

#[test]
fn half_pairs_are_repaired() {
    for half in ["crt", "key"] {
        let dir = Dir::new();
        dir.start(0, "192.0.2.2");
        for name in ["raind", "raindClient", "raindHookClient"] {
            dir.remove(&format!("{name}.{half}"));
        }
        assert_eq!(
            dir.changed(|| dir.start(0, "192.0.2.2")),
            ["raind", "raindClient", "raindHookClient"]
        );
    }
    let dir = Dir::new();
    dir.start(0, "192.0.2.2");
    let cert = dir.path();
    std::fs::copy(cert.join("raindClient.key"), cert.join("raindHookClient.key")).unwrap();
    std::fs::write(cert.join("raind.crt"), "garbage").unwrap();
    assert_eq!(dir.changed(|| dir.start(0, "192.0.2.2")), ["raind", "raindHookClient"]);
}

#[test]
fn a_ca_without_certificate_keeps_its_key() {
    let dir = Dir::new();
    dir.start(0, "192.0.2.2");
    let before = dir.files();
    dir.remove("raindClientCA.crt");
    let pki = dir.start(0, "192.0.2.2");
    let after = dir.files();
    for same in [
        "raindClientCA.key",
        "raindClient.crt",
        "raindHookClient.crt",
        "raind.crt",
    ] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert!(pki.current().authority.signed(&dir.certificates("raindClient")[0]));
}

#[test]
fn a_ca_without_key_hands_over_to_a_new_one() {
    let dir = Dir::new();
    let pki = dir.start(0, "192.0.2.2");
    let running = sign(&pki, "a");
    dir.remove("raindClientCA.key");
    let changed = dir.changed(|| dir.start(0, "192.0.2.2"));
    assert_eq!(changed, ["raindClientCA", "raindClient", "raindHookClient"]);
    let cas = dir.certificates("raindClientCA");
    let former = pair::parse(&cas[1]).unwrap();
    pair::parse(&running)
        .unwrap()
        .verify_signature(Some(former.public_key()))
        .unwrap();
}

#[test]
fn a_crash_between_the_two_files_of_a_ca_is_finished() {
    let dir = Dir::new();
    dir.start(0, "192.0.2.2");
    let key = KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(dir.path().join("raindClientCA.key"), &key).unwrap();
    dir.start(0, "192.0.2.2");
    assert_eq!(dir.files()["raindClientCA.key"], key.as_bytes());
    assert_eq!(dir.certificates("raindClientCA").len(), 2);
}

#[test]
fn a_broken_ca_is_not_replaced() {
    let dir = Dir::new();
    dir.start(0, "192.0.2.2");
    for file in ["raindClientCA.key", "raindClientCA.crt"] {
        let path = dir.path().join(file);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, "garbage").unwrap();
        let error = Pki::load_or_create(&dir.path(), &[]).err().unwrap().to_string();
        assert!(error.contains(file) && error.contains("restore it"), "{error}");
        std::fs::write(&path, good).unwrap();
    }
}

/// Makes what the original daemon makes: RSA, PKCS#1, a server certificate that is a CA, names as `PrintableString`.
fn earlier_installation(cert: &Path) {
    let script = r#"
        set -e
        cd "$1"
        printf '[req]\nprompt=no\nstring_mask=default\ndistinguished_name=dn\n[dn]\nCN=${ENV::CN}\n' > c.cnf
        export CN=raind
        openssl genrsa -traditional -out raind.key 2048
        openssl req -x509 -config c.cnf -key raind.key -out raind.crt -days 1825 \
            -addext basicConstraints=critical,CA:TRUE -addext extendedKeyUsage=serverAuth \
            -addext keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign \
            -addext subjectAltName=DNS:localhost,IP:127.0.0.1,IP:192.0.2.2
        export CN='raind client issuer'
        openssl genrsa -traditional -out raindClientCA.key 2048
        openssl req -x509 -config c.cnf -key raindClientCA.key -out raindClientCA.crt -days 1825 \
            -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
        for pair in raindClient:cli/admin raindHookClient:droplet/container; do
            name=${pair%%:*}
            export CN="$name"
            printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n' > e.cnf
            printf 'extendedKeyUsage=clientAuth\nsubjectAltName=URI:spiffe://raind/%s\n' "${pair#*:}" >> e.cnf
            openssl genrsa -traditional -out "$name.key" 2048
            openssl req -new -config c.cnf -key "$name.key" |
                openssl x509 -req -CA raindClientCA.crt -CAkey raindClientCA.key -days 365 -extfile e.cnf -out "$name.crt"
        done
        rm -f ./*.cnf ./*.srl
    "#;
    std::fs::create_dir_all(cert).unwrap();
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(cert)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_earlier_installation_is_used_as_it_is() {
    let dir = Dir::new();
    earlier_installation(&dir.path());
    assert!(dir.changed(|| dir.start(0, "192.0.2.2")).is_empty());
    let pki = dir.start(0, "192.0.2.2");
    let ca = &dir.certificates("raindClientCA")[0];
    let signed = sign(&pki, "a");
    let (signed, ca) = (pair::parse(&signed).unwrap(), pair::parse(ca).unwrap());
    assert_eq!(
        signed.issuer().as_raw(),
        ca.subject().as_raw(),
        "verifiers compare the bytes of names"
    );
    signed.verify_signature(Some(ca.public_key())).unwrap();
    assert_eq!(dir.changed(|| dir.start(0, "192.0.2.3")), ["raind"]);
}
