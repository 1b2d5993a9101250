//! Bearer tokens: reading the challenges of a registry and asking its token service (the distribution specification's
//! token authentication). Anonymous: no credentials are sent.

use http_auth::parser::ChallengeParser;
use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

/// Where and for what to ask for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenRequest {
    pub url: Url,
}

/// Finds the first usable bearer challenge among all of an answer. `default_scope` is asked for when it names none.
/// The error says what the registry wants instead.
pub(super) fn token_request(headers: &HeaderMap, default_scope: &str) -> Result<TokenRequest, String> {
    let mut others = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()) {
        // What follows something unreadable (`Negotiate <token68>`) is lost; what stands before it counts.
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
            let mut url = Url::parse(&realm).map_err(|e| format!("the token service {realm:?} is not a URL: {e}"))?;
            let scope = param("scope")
                .filter(|s| !s.is_empty())
                .unwrap_or_else(|| default_scope.to_owned());
            let mut query = url.query_pairs_mut();
            if let Some(service) = param("service") {
                query.append_pair("service", &service);
            }
            query.append_pair("scope", &scope);
            drop(query);
            return Ok(TokenRequest { url });
        }
    }
    match &others[..] {
        [] => Err("it wants to know who we are but does not say how (no bearer challenge)".into()),
        schemes => Err(format!(
            "it wants credentials ({}), and none are configured",
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
    let reply: Reply = serde_json::from_slice(reply).map_err(|e| format!("the token reply is not understood: {e}"))?;
    let mut candidates = [reply.token, reply.access_token].into_iter().flatten();
    candidates
        .find(|t| !t.is_empty())
        .ok_or_else(|| "the token reply has no token".into())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn url(values: &[&str]) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        token_request(&headers, "repository:a/b:pull").map(|r| r.url.to_string())
    }

    const PLAIN: &str = "https://auth.io/token?service=reg&scope=repository%3Aa%2Fb%3Apull";

    #[rstest::rstest]
    #[case(&[r#"Bearer realm="https://auth.io/token",service="reg""#])]
    #[case(&[r#"bearer SERVICE="reg" , Realm="https://auth.io/token""#])]
    #[case(&[r#"Basic realm="x", Bearer realm="https://auth.io/token",service=reg"#])]
    #[case(&[r#"Basic realm="x""#, r#"Bearer realm="https://auth.io/token",service="reg",scope="""#])]
    #[case(&[r#"Bearer realm="https://auth.io/token",service="reg",scope="repository:a/b:pull",error="invalid_token""#])]
    fn challenges(#[case] values: &[&str]) {
        assert_eq!(url(values).unwrap(), PLAIN);
    }

    #[test]
    fn a_scope_with_commas_and_a_realm_with_a_query() {
        let found = url(&[r#"Bearer realm="https://auth.io/t?x=1",scope="repository:a/b:pull,push""#]).unwrap();
        assert_eq!(found, "https://auth.io/t?x=1&scope=repository%3Aa%2Fb%3Apull%2Cpush");
    }

    #[rstest::rstest]
    #[case(&[], "does not say how")]
    #[case(&[r#"Basic realm="x""#], "wants credentials (Basic)")]
    #[case(&["Negotiate dG9rZW4="], "does not say how")]
    #[case(&[r#"Bearer realm="not a url""#], "not a URL")]
    #[case(&[r#"Bearer service="x""#], "does not say how")]
    fn what_cannot_be_used(#[case] values: &[&str], #[case] reason: &str) {
        let error = url(values).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn either_member_is_the_token() {
        assert_eq!(token_of(br#"{"token":"t"}"#).unwrap(), "t");
        assert_eq!(token_of(br#"{"access_token":"a","expires_in":60}"#).unwrap(), "a");
        assert_eq!(token_of(br#"{"token":"","access_token":"a"}"#).unwrap(), "a");
        token_of(br#"{"token":null}"#).unwrap_err();
        token_of(b"<html>").unwrap_err();
    }
}
