//! The `User` of an image as numbers: `name|uid[:group|gid]`, looked up in the image's own `/etc/passwd` and
//! `/etc/group` (OCI image specification, `config.User`; names as the Docker engine reads them). Pure.

use super::ImageError;

/// The identity of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub additional_gids: Vec<u32>,
}

/// Resolves `user`. `""` is root with group root.
///
/// A number without an entry is used as it is, with group 0. Without a group, the result has the user's primary group
/// and the groups that list the user as a member; with a group, only that one.
pub(super) fn resolve(user: &str, passwd: &str, group: &str) -> Result<User, ImageError> {
    if user.is_empty() {
        return Ok(User::default());
    }
    let (name, wanted_group) = user.split_once(':').map_or((user, ""), |(name, group)| (name, group));
    // A number is never looked up as a name: a request for 1000 must not get an account that is named "1000".
    let number = id(name);
    let account = accounts(passwd).find(|a| match number {
        Some(number) => a.uid == number,
        None => a.name == name,
    });
    let (uid, own_gid) = match (&account, number) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) if name.is_empty() => (0, 0),
        (None, None) => return Err(unknown("user", name, "passwd")),
    };
    if wanted_group.is_empty() {
        let member = account.map(|a| a.name).unwrap_or_default();
        let mut additional_gids: Vec<u32> = groups(group)
            .filter(|g| g.members.split(',').any(|m| !m.is_empty() && m == member))
            .map(|g| g.gid)
            .collect();
        additional_gids.sort_unstable();
        additional_gids.dedup();
        return Ok(User {
            uid,
            gid: own_gid,
            additional_gids,
        });
    }
    let named = || groups(group).find(|g| g.name == wanted_group).map(|g| g.gid);
    let gid = id(wanted_group)
        .or_else(named)
        .ok_or_else(|| unknown("group", wanted_group, "group"))?;
    Ok(User {
        uid,
        gid,
        additional_gids: Vec::new(),
    })
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// `name:password:uid:gid:…`; malformed lines are skipped.
fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.trim();
        Some(Account {
            name,
            uid: id(fields.nth(1)?)?,
            gid: id(fields.next()?)?,
        })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// `name:password:gid:members`.
fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.trim();
        Some(Group {
            name,
            gid: id(fields.nth(1)?)?,
            members: fields.next().unwrap_or_default().trim(),
        })
    })
}

/// A user or group id. Some programs take ids with the highest bit set as "nobody" or "no change".
fn id(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|id| *id <= i32::MAX as u32)
}

fn unknown(kind: &'static str, name: &str, file: &'static str) -> ImageError {
    ImageError::UnknownUser {
        kind,
        name: name.to_owned(),
        file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/:\n1000:x:7:8::/:\n#x:x:y:z\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:4:sys,web\nadm:x:3:web,sys\nadm2:x:3:web\nnone:x:9\n";

    #[rstest::rstest]
    #[case("", 0, 0, &[])]
    #[case("web", 33, 34, &[3, 4])]
    #[case("33", 33, 34, &[3, 4])]
    #[case("web:", 33, 34, &[3, 4])]
    #[case("web:logs", 33, 4, &[])]
    #[case("web:77", 33, 77, &[])]
    #[case("99", 99, 0, &[])]
    #[case("99:web", 99, 34, &[])]
    #[case(":web", 0, 34, &[])]
    #[case("1000", 1000, 0, &[])]
    #[case("123456", 123_456, 0, &[])]
    #[case("1000680000:web", 1_000_680_000, 34, &[])]
    #[case("web:1000680000", 33, 1_000_680_000, &[])]
    #[case("0:0", 0, 0, &[])]
    #[case("2147483647", i32::MAX as u32, 0, &[])]
    fn who_it_is(#[case] user: &str, #[case] uid: u32, #[case] gid: u32, #[case] groups: &[u32]) {
        let expected = User {
            uid,
            gid,
            additional_gids: groups.to_vec(),
        };
        assert_eq!(resolve(user, PASSWD, GROUP).unwrap(), expected);
    }

    #[rstest::rstest]
    #[case("nobody", "the image has no user \"nobody\" in /etc/passwd")]
    #[case("web:wheel", "the image has no group \"wheel\" in /etc/group")]
    #[case("-1", "the image has no user \"-1\" in /etc/passwd")]
    #[case("2147483648", "the image has no user \"2147483648\" in /etc/passwd")]
    #[case("web:a:b", "the image has no group \"a:b\" in /etc/group")]
    fn who_is_unknown(#[case] user: &str, #[case] text: &str) {
        assert_eq!(resolve(user, PASSWD, GROUP).unwrap_err().to_string(), text);
    }
}
