# shellcheck shell=bash
# To be sourced: what the other scripts need of the machine.

say() { printf '\n==> %s\n' "$*"; }
die() { printf '\nerror: %s\n' "$*" >&2; exit 1; }

# need COMMAND=PACKAGE...: installs, with apt and without a word, the packages whose command is missing.
need() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" > /dev/null || missing+=("${pair#*=}")
    done
    if [ ${#missing[@]} -eq 0 ]; then return; fi
    command -v apt-get > /dev/null || die "please install: ${missing[*]}"
    say "installing ${missing[*]}"
    # RUNLEVEL=1 keeps services such as docker-registry from being started by their installation.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
    case " ${missing[*]} " in
        *" docker-registry "*)
            if [ -d /run/systemd/system ]; then systemctl --quiet disable --now docker-registry || true; fi
            ;;
    esac
}

need_root() {
    [ "$(id -u)" = 0 ] || die "this needs root: sudo $0 $*"
}

# A Rust toolchain cannot come from Debian 12: it is too old there.
need_cargo() {
    PATH=$PATH:/root/.cargo/bin
    if ! command -v cargo > /dev/null && apt-cache show rustup > /dev/null 2>&1; then
        need rustup=rustup
        rustup --quiet default stable
    fi
    command -v cargo > /dev/null || die "please install Rust 1.90 or newer first, see https://rustup.rs"
}
