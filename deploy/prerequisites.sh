#!/usr/bin/env bash
# Installs the programs that tests start and pip can't bring, when a test starts one, it is
# missing and we are root. Never fails: a test that misses its program says so (and fails in
# CI, is skipped elsewhere).
set -uo pipefail
cd "$(dirname "$0")/.."

missing=()
wants() { grep -rqsE --include='*.py' "$1" tests; }

if wants 'needs\("mariadbd"' && ! command -v mariadbd >/dev/null && [ ! -x /usr/sbin/mariadbd ]; then
  missing+=(mariadb-server-core mariadb-client-core)
fi
if wants 'needs\("postgres"' && ! command -v postgres >/dev/null && ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
  missing+=(postgresql)
fi
if wants 'needs\("systemd-analyze"' && ! command -v systemd-analyze >/dev/null; then
  missing+=(systemd)
fi
if wants 'needs\("strace"' && ! command -v strace >/dev/null; then
  missing+=(strace)
fi
if wants 'needs\("mount"' && ! command -v mount >/dev/null; then
  missing+=(mount)
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "Tests that need ${missing[*]} will be skipped: install them as root." >&2
  exit 0
fi
echo "installing ${missing[*]} for the tests" >&2
# Only the programs: no cluster of Debian's is made or started.
if [ ! -d /etc/postgresql-common ]; then
  mkdir -p /etc/postgresql-common/createcluster.d
  echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/lakehouse-tests.conf
fi
export DEBIAN_FRONTEND=noninteractive
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } </dev/null >&2 ||
  echo "apt-get could not install ${missing[*]}; the tests that need them will say so." >&2
exit 0
