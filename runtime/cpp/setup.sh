#!/usr/bin/env bash
# Installs what a Debian or Ubuntu machine needs to build libprtool (as root, or with sudo), and lays ONNX Runtime's headers
# and library under third_party/onnxruntime beside this file.
#
# usage: setup.sh [PYTHON]     PYTHON: an interpreter whose onnxruntime is used, so that both languages run the same library;
#                              without onnxruntime in it, its pip downloads one (default: python3)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${1:-python3}
ort=$here/third_party/onnxruntime

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

install_packages() {
    local packages=(cmake ninja-build pkg-config g++ clang nlohmann-json3-dev libspng-dev zlib1g-dev libssl-dev doctest-dev)
    if grep -qi '^ID=ubuntu' /etc/os-release; then packages+=(libjpeg-turbo8-dev); else packages+=(libjpeg62-turbo-dev); fi
    local missing=() package
    for package in "${packages[@]}"; do dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package"); done
    if [ "${#missing[@]}" -gt 0 ]; then
        as_root apt-get update
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
    fi
    # The sanitizers and libFuzzer come in a package of the compiler's own version.
    local version
    version=$(clang --version | sed -n 's/.*version \([0-9]*\)\..*/\1/p')
    dpkg -s "libclang-rt-$version-dev" >/dev/null 2>&1 ||
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "libclang-rt-$version-dev"
}

# Debian has the headers from release 13 on. An older one takes them from there, in a package list of its own, so that
# nothing else of that release can be installed by accident. The C API is backward compatible: a newer library runs with them.
fetch_headers() {
    local state options=()
    state=$(mktemp -d)
    if ! apt-cache show libonnxruntime-dev >/dev/null 2>&1; then
        local archive
        archive=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | awk '$2 !~ /-/ && /debian/ { print $1; exit }')
        mkdir -p "$state/lists/partial" "$state/archives/partial"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive trixie main" >"$state/sources.list"
        options=(-o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state")
        as_root apt-get "${options[@]}" update -qq
    fi
    (cd "$state" && apt-get "${options[@]}" download libonnxruntime-dev && dpkg -x libonnxruntime-dev_*.deb headers)
    mkdir -p "$ort/include"
    cp "$(dirname "$(find "$state/headers" -name onnxruntime_cxx_api.h)")"/*.h "$ort/include/"
    rm -rf "$state"
}

fetch_library() {
    local folder scratch=
    if ! folder=$("$python" -c 'import onnxruntime, pathlib; print(pathlib.Path(onnxruntime.__file__).parent / "capi")' 2>/dev/null); then
        scratch=$(mktemp -d)
        "$python" -m pip download --quiet --no-deps --dest "$scratch" onnxruntime
        "$python" -m zipfile -e "$scratch"/onnxruntime-*.whl "$scratch"
        folder=$scratch/onnxruntime/capi
    fi
    mkdir -p "$ort/lib"
    cp "$folder"/libonnxruntime.so.*.* "$ort/lib/"
    if [ -n "$scratch" ]; then rm -rf "$scratch"; fi
    local library
    library=$(basename "$(ls "$ort"/lib/libonnxruntime.so.*.* | sort -V | tail -1)")
    ln -sf "$library" "$ort/lib/libonnxruntime.so.1"
    ln -sf libonnxruntime.so.1 "$ort/lib/libonnxruntime.so"
}

install_packages
[ -e "$ort/include/onnxruntime_cxx_api.h" ] || fetch_headers
[ -e "$ort/lib/libonnxruntime.so" ] || fetch_library
echo "ready: cmake --preset release -S $here"
