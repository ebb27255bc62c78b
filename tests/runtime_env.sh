#!/usr/bin/env bash
# Print, for `eval`, where the built llama.cpp and its source are. Builds it where it is not there yet, and unpacks
# the scripts of its source (the converters) beside the kept sdist, once.
set -euo pipefail

bin=$(swarmctl runtime build)
sdist=$(python - <<'END'
import os
from swarmctl.fleet.store import Store
from swarmctl.paths import Paths
print(Store.of(Paths.from_environ(os.environ)).sdist(lambda *_: None))
END
)
store=${sdist%/sources/*}
source=${sdist%.tar.gz}
if [[ ! -d $source ]]; then
  part=$(mktemp -d "$store/sources/.part-XXXXXX")
  tar -xzf "$sdist" -C "$part" --strip-components 1
  mv -T "$part" "$source" 2>/dev/null || rm -rf "$part"  # another run may have been first
fi
printf 'export SWARMCTL_TEST_LLAMACPP=%q SWARMCTL_TEST_LLAMACPP_SRC=%q\n' "$bin" "$source/vendor/llama.cpp"
