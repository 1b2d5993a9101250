# shellcheck shell=bash
# To be sourced: what the other scripts need of the machine.

say() { printf '\n==> %s\n' "$*"; }
die() { printf '\nerror: %s\n' "$*" >&2; exit 1; }

# need COMMAND=PACKAGE...: installs, with apt, the packages whose command is missing.
# Twice, because apt may remove one package of another release for the sake of a second one (qemu-utils of
# bookworm-backports for qemu-system-x86 of bookworm).
need() {
    install_missing "$@"
    install_missing "$@"
}

install_missing() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" > /dev/null || missing+=("${pair#*=}")
    done
    if [ ${#missing[@]} -eq 0 ]; then return; fi
    command -v apt-get > /dev/null || die "please install: ${missing[*]}"
    say "installing with apt: ${missing[*]}"
    # RUNLEVEL=1 keeps services such as docker-registry from being started by their installation.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq
    apt-get install -y -q --no-install-recommends "${missing[@]}" 2>&1 |
        sed -nu 's/^\(Need to get\|E:\|Setting up\) /    &/p'
    case " ${missing[*]} " in
        *" docker-registry "*)
            if [ -d /run/systemd/system ]; then systemctl --quiet disable --now docker-registry || true; fi
            ;;
    esac
}

need_root() {
    [ "$(id -u)" = 0 ] || die "this needs root: sudo $0 $*"
}

# need_cargo COMMAND...: puts a cargo that is new enough, and has these commands, on the PATH. Without one it says what is
# missing and how to get it; it installs nothing.
need_cargo() {
    local wanted user_home home directory component version found=''
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    # sudo hides the PATH and the home of the user whose Rust it is.
    user_home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
    for home in '' "${HOME:-/root}" /root "$user_home"; do
        directory=${home:+$home/.cargo/bin}
        [ -n "$directory" ] || directory=$(dirname "$(command -v cargo || echo /nowhere/cargo)")
        [ -x "$directory/cargo" ] || continue
        version=$(rust_version "$directory" "$home") || version="does not run: $version"
        if [[ $version = [0-9]* ]] && printf '%s\n' "$wanted" "$version" | sort --check=quiet --version-sort 2> /dev/null; then
            PATH=$directory:$PATH
            if [ -d "$home/.rustup" ]; then export RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup}; fi
            for component in "$@"; do
                [ "$component" = build ] || cargo "$component" --version > /dev/null 2>&1 ||
                    die "cargo $component is missing: rustup component add ${component/fmt/rustfmt}"
            done
            return
        fi
        found+="    $directory/cargo: $version"$'\n'
    done
    no_rust "$wanted" "$found"
}

# rust_version DIRECTORY HOME: the version of the compiler there, or what it says instead.
rust_version() {
    local said home=$2
    said=$(RUSTUP_HOME=${RUSTUP_HOME:-${home:-${HOME:-/root}}/.rustup} "$1/rustc" --version 2>&1) || {
        head -n 2 <<< "$said"
        return 1
    }
    cut -d ' ' -f 2 <<< "$said"
}

# no_rust WANTED FOUND
no_rust() {
    local by_apt='' found=''
    # `apt-cache show` succeeds for names that other packages only mention.
    if [[ $(apt-cache policy rustup 2> /dev/null) =~ Candidate:\ [0-9] ]]; then
        by_apt=$'\nor from a package of this system:\n\n    apt-get install rustup && rustup default stable\n'
    fi
    if [ -n "$2" ]; then found=$'What is there is too old, or does not run:\n\n'$2$'\n'; fi
    cat >&2 << END

error: Rust $1 or newer is needed to build Condenser, and this machine has none.

${found}Get it from https://rustup.rs, as root or as the user who calls sudo (a minute, about 1 GB in the home directory):

    apt-get install curl ca-certificates
    curl -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --component clippy,rustfmt
$by_apt
The packages cargo and rustc of Debian 12, Debian 13 and Ubuntu 24.04 are older than that.
Nothing was installed or changed. Run this again afterwards: $0
END
    exit 1
}

# Minutes that a build takes with two processors that have nothing else to do, and MB of disk.
declare -A build_minutes=([try]=5 [release]=18) build_megabytes=([try]=1300 [release]=1500)

# build PROFILE: builds the three programs; says before what it takes, and goes on saying that it works.
build() {
    local free status=0 ticker
    if [ -x "target/$1/condenser" ]; then
        say "building what has changed"
    else
        say "building: about ${build_minutes[$1]} minutes with two processors (here: $(nproc)), and ${build_megabytes[$1]} MB in $PWD/target"
        free=$(df -Pm . | awk 'NR == 2 { print $4 }')
        [ "$free" -ge "${build_megabytes[$1]}" ] || die "there are only $free MB free in $PWD"
    fi
    # On a terminal cargo shows a bar by itself.
    if [ -t 2 ]; then
        cargo build --profile "$1" --locked --bins
        return
    fi
    tick &
    ticker=$!
    cargo build --profile "$1" --locked --bins || status=$?
    kill "$ticker" 2> /dev/null || true
    return "$status"
}

# tick: a line every half a minute while the script lives. Waits without a child that would outlive it.
tick() {
    local never begun=$SECONDS
    exec {never}<> <(:)
    while ! read -rt 30 -u "$never" && kill -0 $$ 2> /dev/null; do
        printf '    still building, for %d:%02d minutes now\n' $(((SECONDS - begun) / 60)) $(((SECONDS - begun) % 60))
    done
}
