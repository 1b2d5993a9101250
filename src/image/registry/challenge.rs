//! The challenge in a registry's 401, and the reply of its token service (the distribution specification's token
//! authentication, RFC 7617 for Basic). Pure.

use http_auth::parser::ChallengeParser;
use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

/// How to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With a token of a token service.
    Bearer {
        realm: Url,
        service: Option<String>,
        scope: String,
    },
    /// With user and password.
    Basic,
}

/// Selects one of the challenges of an answer: the first usable Bearer challenge, otherwise Basic. `default_scope`
/// applies if the challenge has none. The error lists the schemes that the registry offers instead.
pub(super) fn challenge(headers: &HeaderMap, default_scope: &str) -> Result<Challenge, String> {
    let mut others = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()) {
        // Challenges after an unparsable one (`Negotiate <token68>`) are lost; those before it are used.
        for challenge in ChallengeParser::new(value).map_while(Result::ok) {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                others.push(challenge.scheme.to_owned());
                continue;
            }
            let Some(realm) = param("realm") else { continue };
            let realm = Url::parse(&realm).map_err(|e| format!("the token service {realm:?} is not a URL: {e}"))?;
            let scope = param("scope").filter(|s| !s.is_empty());
            return Ok(Challenge::Bearer {
                realm,
                service: param("service"),
                scope: scope.unwrap_or_else(|| default_scope.to_owned()),
            });
        }
    }
    match &others[..] {
        [] => Err("it wants to know who we are but does not say how (no bearer challenge)".into()),
        schemes if schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic")) => Ok(Challenge::Basic),
        schemes => Err(format!(
            "it wants credentials of a kind that is not known here ({})",
            schemes.join(", ")
        )),
    }
}

/// The token in a token service's reply: `token`, else `access_token`.
pub(super) fn token_of(reply: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Reply {
        token: Option<String>,
        access_token: Option<String>,
    }
    // The parser's own messages quote the text.
    let reply: Reply = serde_json::from_slice(reply).map_err(|e| {
        format!(
            "the token reply is not understood (line {}, column {})",
            e.line(),
            e.column()
        )
    })?;
    let mut candidates = [reply.token, reply.access_token].into_iter().flatten();
    candidates
        .find(|t| !t.is_empty())
        .ok_or_else(|| "the token reply has no token".into())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn read(values: &[&str]) -> Result<Challenge, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        challenge(&headers, "repository:a/b:pull")
    }

    fn bearer(realm: &str, scope: &str) -> Challenge {
        Challenge::Bearer {
            realm: realm.parse().unwrap(),
            service: Some("reg".into()),
            scope: scope.into(),
        }
    }

    #[rstest::rstest]
    #[case(&[r#"Bearer realm="https://auth.io/token",service="reg""#])]
    #[case(&[r#"bearer SERVICE="reg" , Realm="https://auth.io/token""#])]
    #[case(&[r#"Basic realm="x", Bearer realm="https://auth.io/token",service=reg"#])]
    #[case(&[r#"Basic realm="x""#, r#"Bearer realm="https://auth.io/token",service="reg",scope="""#])]
    #[case(&[r#"Bearer realm="https://auth.io/token",service="reg",scope="repository:a/b:pull",error="invalid_token""#])]
    fn bearer_challenges(#[case] values: &[&str]) {
        assert_eq!(
            read(values).unwrap(),
            bearer("https://auth.io/token", "repository:a/b:pull")
        );
    }

    #[test]
    fn a_scope_with_commas_and_a_realm_with_a_query() {
        let found = read(&[r#"Bearer realm="https://auth.io/t?x=1",service=reg,scope="repository:a/b:pull,push""#]);
        assert_eq!(
            found.unwrap(),
            bearer("https://auth.io/t?x=1", "repository:a/b:pull,push")
        );
    }

    #[test]
    fn basic_is_for_lack_of_better() {
        assert_eq!(
            read(&[r#"Digest realm="x""#, r#"basic realm="x""#]).unwrap(),
            Challenge::Basic
        );
    }

    #[rstest::rstest]
    #[case(&[], "does not say how")]
    #[case(&[r#"Digest realm="x""#], "(Digest)")]
    #[case(&["Negotiate dG9rZW4="], "does not say how")]
    #[case(&[r#"Bearer realm="not a url""#], "not a URL")]
    #[case(&[r#"Bearer service="x""#], "does not say how")]
    fn what_cannot_be_used(#[case] values: &[&str], #[case] reason: &str) {
        let error = read(values).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn either_member_is_the_token() {
        assert_eq!(token_of(br#"{"token":"t"}"#).unwrap(), "t");
        assert_eq!(token_of(br#"{"access_token":"a","expires_in":60}"#).unwrap(), "a");
        assert_eq!(token_of(br#"{"token":"","access_token":"a"}"#).unwrap(), "a");
        token_of(br#"{"token":null}"#).unwrap_err();
        token_of(b"<html>").unwrap_err();
        assert!(!token_of(br#""hunter2""#).unwrap_err().contains("hunter2"));
    }
}
