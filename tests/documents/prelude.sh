# What every page of the documents begins with when it is run: see upt_testing/documents.py.
set -euo pipefail
trap 'echo "failed: $at: $BASH_COMMAND" >&2' ERR
trap stop EXIT
at=prelude
server=
export UPT_SERVER_GRPC_PORT=8001 UPT_SERVER_HTTP_PORT=8000
store=$HOME/.local/share/upt

# the store as it is once everything has been pulled
fill() {
  mkdir -p "$(dirname "$store")"
  cp -r "$CATALOGUE" "$store"
}

# adapters that nobody can pull: see adapters.py
publish() {
  PYTHONPATH=$ROOT/tests python "$ROOT/tests/documents/adapters.py" "$@"
}

# a server that the page's next commands ask; the one before it ends
serve() {
  stop
  : > ready.json
  command upt-server run "$@" --json > ready.json 2> server.log &
  server=$!
  until [[ -s ready.json ]]; do
    kill -0 "$server" 2> /dev/null || { cat server.log >&2; server=; return 1; }
    sleep 0.1
  done
}

stop() {
  [[ -n $server ]] || return 0
  kill "$server" 2> /dev/null || true
  wait "$server" 2> /dev/null || true
  server=
}

# the commands ask the page's own server where they name none
upt-server() {
  case "$* " in
    run*) serve "${@:2}" ;;
    top*--once*) command upt-server "$@" --server 127.0.0.1:8000 ;;
    top*) timeout -s INT 5 upt-server "$@" --server 127.0.0.1:8000 || [[ $? == 124 ]] ;;
    *" --server "*) command upt-server "$@" ;;
    predict* | ls*) command upt-server "$@" --server 127.0.0.1:8001 ;;
    status* | admin*) command upt-server "$@" --server 127.0.0.1:8002 ;;
    *) command upt-server "$@" ;;
  esac
}

# an error status is an error
curl() {
  command curl --fail-with-body "$@"
}
