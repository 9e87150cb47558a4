# shellcheck shell=bash
# Sourced by the scripts beside it, which run from the root of the repository. As first argument --help shows a script's
# first lines, and --dry-run prints its commands in place of running them.

dry=
case ${1:-} in
--help)
  sed -nE '2,/^[^#]/s/^#( |$)//p' "$0"
  exit 0
  ;;
--dry-run)
  dry=1
  shift
  ;;
esac

# Run a command, or print it.
run() {
  if [[ $dry ]]; then
    printf '%q ' "$@" | sed 's/ $/\n/'
  else
    "$@"
  fi
}

# Set the environment that launch/xla says for a chip, and print it in a dry run.
set_flags() {
  local names='JAX_PLATFORMS|XLA_FLAGS|XLA_PYTHON_CLIENT_MEM_FRACTION|CUDA_DEVICE_MAX_CONNECTIONS|LIBTPU_INIT_ARGS'
  if [[ ! -f launch/xla/$1.env ]]; then
    echo "$0: CHIP is '$1', expected one of: $(cd launch/xla && echo *.env | sed 's/\.env//g'); see --help" >&2
    exit 2
  fi
  # shellcheck source=launch/xla/cpu.env
  source "launch/xla/$1.env"
  if [[ $dry ]]; then env | grep -E "^($names)=" | sort; fi
}
