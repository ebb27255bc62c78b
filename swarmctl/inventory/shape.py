"""Every key an inventory may have: its type, bounds, default and meaning, once.

The parser walks this table, the JSON Schema and docs/inventory.md are printed from it, so the three cannot
drift. Patterns mean the same in Python's `re` and in ECMA 262 (JSON Schema), and are anchored.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmctl.inventory.wishes import (
    BACKENDS,
    BETWEEN_HOSTS,
    DEFAULT_DATA_DIR,
    DEFAULT_PORT,
    MANAGE,
    OLLAMA_PORT,
    ROLES,
    RUNTIMES,
    WHEN_IDLE,
)

#: llama-server options that swarmctl sets itself, with what to write instead (empty: there is no say in it).
OWNED_FLAGS = {
    "host": "", "port": "`port`", "model": "`models`", "model-url": "`source`", "hf-repo": "`source`",
    "hf-file": "`source`", "hf-token": "`source`", "docker-repo": "`source`", "models-dir": "`models`",
    "models-preset": "`models`", "alias": "the model's name", "ctx-size": "`context`",
    "parallel": "`parallel`", "api-key": "", "api-key-file": "", "api-prefix": "", "ssl-key-file": "",
    "ssl-cert-file": "", "log-file": "", "log-disable": "", "slots": "", "no-slots": "", "reuse-port": "",
}

#: variables of Ollama's environment that swarmctl sets itself, with what to write instead.
OWNED_ENV = {"OLLAMA_HOST": "`port`", "OLLAMA_MODELS": "`data_dir`"}

MOST = 2**60


@dataclass(frozen=True, slots=True)
class Text:
    """Text that matches `pattern`. `what` and `example` are what an error says."""

    what: str
    example: str
    pattern: str = r"^[^\u0000-\u001f\u007f]+$"
    longest: int = 1024


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `least` to `most`."""

    what: str
    example: str
    least: int = 1
    most: int = MOST


@dataclass(frozen=True, slots=True)
class Number:
    """A number from `least` to `most`."""

    what: str
    example: str
    least: float = 0
    most: float = 1e9


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes: a whole number, or text such as 8GiB or 500MB."""

    what: str
    example: str
    pattern: str = r"^[0-9]{0,14}[1-9][0-9]{0,14}(\.[0-9]{1,6})? ?([KMGT]i?)?B$"
    most: int = MOST


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    what: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """True or false."""

    what: str = "true or false"
    example: str = "true"


@dataclass(frozen=True, slots=True)
class Value:
    """Any scalar but nothing: text, a number, true or false."""

    what: str
    example: str
    text: Text = Text("text", "q8_0")


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of one kind."""

    what: str
    item: Kind
    example: str
    least: int = 0
    unique: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping from names to one kind. `refused` names may not be used."""

    what: str
    key: Text
    item: Kind
    least: int = 0
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A mapping with known keys. `short` names the key that a bare scalar stands for; `nothing` allows an
    empty one."""

    name: str
    what: str
    keys: tuple[Key, ...]
    nothing: bool = False
    short: str | None = None


Kind = Text | Whole | Number | Size | Choice | Truth | Value | Listing | Table | Record


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a record. `default` is how the reference page words it."""

    name: str
    kind: Kind
    means: str
    default: str = ""
    required: bool = False


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(:[A-Za-z0-9][A-Za-z0-9._-]{0,62})?$"
FOLDER = r"^(/|~/)[^\u0000-\u001f\u007f\"'`$%\\]+$"
SSH = r"^[^\s\u0000-\u001f\u007f-][^\s\u0000-\u001f\u007f]*$"
SOURCE = (r"^(shipped:[A-Za-z0-9][A-Za-z0-9._-]{0,62}|ollama:[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}|https://[^\s]+"
          r"|(?![A-Za-z][A-Za-z0-9+.-]+:)[^\u0000-\u001f\u007f]+)$")

_model_name = Text("a model's name (letters, digits, . _ - and one :tag)", "qwen3-8b:q4", MODEL_NAME, 127)
_host_name = Text("a host's name (letters, digits, . _ -)", "worlock", NAME, 63)
_context = Whole("a whole number of tokens", "8192", 16, 100_000_000)
_parallel = Whole("a whole number of conversations", "2", 1, 1024)
_ollama_port = Whole("a port from 1024 to 65535", str(OLLAMA_PORT), 1024, 65535)
_port = Whole("a port from 1024 to 65535", str(DEFAULT_PORT), 1024, 65535)
_option = Text("a long option of llama-server without its dashes", "cache-type-k",
               r"^[a-z0-9][a-z0-9-]{1,63}$", 64)
_flags = Table("a mapping of llama-server options", _option, Value("text, a number, true or false", "q8_0"),
               refused=tuple(OWNED_FLAGS))
_version = Text("a release's version", "0.33.0", r"^[0-9]{1,6}(\.[0-9]{1,6}){1,3}([a-z0-9.-]{1,20})?$", 40)
_source_version = Text("a version of llama-cpp-python", "0.3.36",
                       r"^[0-9]{1,6}(\.[0-9]{1,6}){1,3}([a-z0-9.]{1,20})?$", 40)
_variable = Text("a variable's name in capitals", "OLLAMA_NUM_PARALLEL", r"^[A-Z][A-Z0-9_]{0,63}$", 64)
_hash = Text("64 hexadecimal digits", "what sha256sum prints", r"^[0-9a-fA-F]{64}$", 64)
_price = Key("price", Number("money per kWh", "0.30", 0, 1e6), "What a kWh costs.", "0.30")
_currency = Key("currency", Text("a currency of three capital letters", "EUR", r"^[A-Z]{3}$", 3),
                "The currency of `price`.", "EUR")
_watts = Number("watts at the wall", "45", 0, 1e6)

QUALITY = Record("quality", "a mapping of categories to shares of good answers", tuple(
    Key(category, Number("a share from 0 to 1", "0.7", 0, 1), f"Share of good answers to {category} prompts.",
        "learned from ratings") for category in ("routine", "complex", "code")), nothing=True)

IMPROVE = Record("improve", "a mapping that says when and how to train the model anew", (
    Key("recipe", Text("a recipe's name or file", "dpo-lora"), "The recipe to train by.", "dpo-lora"),
    Key("labels", Whole("a whole number of ratings", "100"), "New ratings that a round needs.", "100"),
    Key("cooldown_hours", Number("hours", "24", 0, 1e6), "The least time between two rounds.", "24"),
    Key("budget_hours", Number("hours", "24", 0, 168), "The most training in seven days.", "24"),
    Key("budget_kwh", Number("kWh", "5", 0, 1e6), "The most energy for training in seven days.", "no limit"),
    Key("quantize", Text("a quantisation of llama.cpp", "Q4_K_M", r"^[A-Z0-9_]{2,16}$", 16),
        "What the result is quantised to.", "Q4_K_M"),
    Key("share", Number("a share from 0 to 1", "0.1", 0, 1), "The canary's share of conversations.", "0.1"),
    Key("sign", Truth(), "Whether a human must approve before anybody is answered by it.", "true"),
    Key("by", Choice("a measure", ("references", "votes", "judge")), "What decides, see docs/eval.md.",
        "references"),
    Key("measure", Choice("a way to compare with references", ("f1", "exact", "contains", "number")),
        "How answers are compared with references.", "f1"),
    Key("judge", _model_name, "The model that judges, where `by` is judge.", "none"),
    Key("capability", Text("a file's path", "capability.jsonl"),
        "Questions that it must not unlearn, relative to the inventory's folder.", "none: no promotion"),
    Key("temperature", Number("a temperature", "1", 0, 5), "How held-out prompts are answered.",
        "the server's own"),
    Key("samples", Whole("a whole number of answers", "1", 1, 100), "Answers to each held-out prompt.", "1"),
    Key("max_tokens", Whole("a whole number of tokens", "512"), "The longest answer when evaluating.", "512"),
    Key("host", _host_name, "Where to train.", "the host that fits"),
), nothing=True)

MODEL = Record("model", "a mapping that describes a model", (
    Key("source", Text("shipped:NAME, a path, ollama:NAME or an https:// address", "shipped:small", SOURCE,
                       4096),
        "Where the weights come from: `shipped:NAME` (comes with swarmctl), the path of a GGUF file "
        "(relative to the inventory's folder, `~` allowed), an `https://` address, which needs `sha256`, or "
        "`ollama:NAME`, which Ollama pulls from its registry (for hosts with Ollama only).",
        required=True),
    Key("sha256", _hash,
        "The file's hash, checked wherever the file arrives.", "computed where the file is at hand"),
    Key("context", _context, "Tokens one conversation may hold.", "as trained, as memory allows"),
    Key("parallel", _parallel, "Conversations answered at once.", "as memory allows"),
    Key("quality", QUALITY, "A first guess of the share of good answers, used until ratings say otherwise."),
    Key("flags", _flags, "Options for llama-server wherever this model runs.", "none"),
    Key("weights", Text("a folder's path", "~/models/qwen3-8b"),
        "The Hugging Face folder (safetensors, 16 or 32 bits) that training starts from. Relative to the "
        "inventory's folder.", "that of a `shipped:` source, and of the release that serves it"),
    Key("embedding", Truth(), "Whether it makes vectors; such a model answers no questions.", "false"),
    Key("improve", IMPROVE, "When `swarmctl improve` trains it anew, and what it takes to be served.",
        "never by itself"),
))

LLAMACPP = Record("llamacpp", "a mapping that says how llama.cpp runs", (
    Key("port", _port, "The first loopback port; each model takes the next one.", str(DEFAULT_PORT)),
    Key("backend", Choice("a backend", BACKENDS), "What llama.cpp is built for; `auto` follows the hardware.",
        "auto"),
    Key("flags", _flags, "Options for every llama-server of this host: a long option's name without dashes, "
        "and its value. `true` gives the bare option, `false` leaves out one that swarmctl would set.",
        "none"),
    Key("version", _source_version,
        "The version of the source distribution that carries llama.cpp. A host that has none gets it at "
        "`up`, one that runs another at `upgrade`.", "the one this swarmctl knows"),
    Key("sha256", _hash, "The hash of that source distribution.", "known for this swarmctl's own version"),
), nothing=True)

OLLAMA = Record("ollama", "a mapping that says how Ollama runs", (
    Key("port", _ollama_port, "The loopback port, for all of its models.", str(OLLAMA_PORT)),
    Key("manage", Choice("a way to manage it", MANAGE),
        "`adopt` uses the one that somebody runs there and never starts one; `own` installs and runs "
        "swarmctl's own; `auto` adopts where one runs on the port, else runs its own.", "auto"),
    Key("env", Table("a mapping of environment variables", _variable,
                     Value("text, a number, true or false", "q8_0"), refused=tuple(OWNED_ENV)),
        "Environment of swarmctl's own one, over what follows from facts; `false` leaves a variable out.",
        "none"),
    Key("version", _version, "The release. A host that has none gets it at `up`, one that runs another at "
        "`upgrade`.", "the one this swarmctl knows"),
    Key("sha256", _hash, "The hash of that release's archive.", "what the release's own list says"),
), nothing=True)

PLACEMENT = Record("placement", "a model's name, or a mapping with `model`", (
    Key("model", _model_name, "A name from `models`.", required=True),
    Key("context", _context, "Tokens one conversation may hold, on this host.", "the model's"),
    Key("parallel", _parallel, "Conversations at once, on this host.", "the model's"),
    Key("port", _port, "The loopback port on this host.", "llamacpp.port plus the position in the list"),
    Key("flags", _flags, "Options for llama-server, over the model's and the host's.", "none"),
    Key("runtime", Choice("a runtime", RUNTIMES), "What serves it here.",
        "the only runtime the host names, else llamacpp"),
), short="model")

TRAIN = Record("train", "a mapping that says how this host trains", (
    Key("python", Text("an absolute path, or one under ~/", "~/venvs/train/bin/python", FOLDER),
        "The Python of an environment that is there already and has torch, transformers, trl and peft.",
        "an environment that swarmctl makes once"),
), nothing=True)

LIMITS = Record("limits", "a mapping of bounds", (
    Key("threads", Whole("a whole number of threads", "8", 1, 65536), "Threads a server uses.", "all cores"),
    Key("memory", Size("a size", "16GiB"), "Memory that all models together may take.", "all of it"),
    Key("disk", Size("a size", "200GB"), "Disk space under `data_dir`.", "all of it"),
    Key("parallel", _parallel, "Most conversations at once per model.", "no bound"),
    Key("build_jobs", Whole("a whole number of jobs", "4", 1, 65536),
        "Compilers at once in a build of llama.cpp.", "one per thread"),
), nothing=True)

HOST_ENERGY = Record("host_energy", "a mapping that says what a host draws", (
    Key("idle_watts", _watts, "Draw at the wall while idle.", "estimated"),
    Key("load_watts", _watts, "Draw at the wall while answering.", "estimated"),
    Key("price", _price.kind, "What a kWh costs here.", "energy.price"),
    Key("currency", _currency.kind, "The currency of `price`.", "energy.currency"),
), nothing=True)

ROUTING = Record("routing", "a mapping that says what the router may do", (
    Key("explore", Number("a share from 0 to 1", "0.03", 0, 1),
        "Share of questions that may be spent on learning which model is good; 0 switches it off.", "0.03"),
    Key("cascade", Truth(), "Whether a small model may be asked first, and a larger one where it is unsure.",
        "true"),
    Key("hedge", Truth(), "Whether an idle host is asked too where the first is unusually late.", "true"),
    Key("queue", Whole("a whole number of questions", "64", 0, 1_000_000),
        "Most questions that wait for a free slot; more are refused.", "64"),
    Key("queue_seconds", Number("seconds", "60", 0, 86400), "The longest that one waits for a slot.", "60"),
), nothing=True)

HOST = Record("host", "a mapping that describes a machine", (
    Key("ssh", Text("an SSH alias, [user@]address[:port], or local", "me@10.0.0.7:22", SSH, 255),
        "How to reach it: an alias of ~/.ssh/config (all of its settings hold), `[user@]address[:port]`, or "
        "`local` for this very machine.", "the host's name"),
    Key("roles", Listing("a list of roles", Choice("a role", ROLES), "[inference]", 1, unique=True),
        "What the machine is for: " + ", ".join(f"`{role}`" for role in ROLES) + ".", "[inference]"),
    Key("llamacpp", LLAMACPP, "How llama.cpp runs here.", "{} where it serves models"),
    Key("ollama", OLLAMA, "How Ollama runs here.", "{} where it serves models"),
    Key("models", Listing("a list of models", PLACEMENT, "[small]"),
        "Models wanted here: names, or mappings with this host's own settings.", "[]"),
    Key("data_dir", Text("an absolute folder, or one under ~/", "/mnt/nvme/swarmctl", FOLDER),
        "The folder swarmctl keeps to on this host; best on an NVMe disk.", DEFAULT_DATA_DIR),
    Key("limits", LIMITS, "Bounds on what swarmctl takes.", "no bounds"),
    Key("train", TRAIN, "How it trains, where it has the role `train`."),
    Key("energy", HOST_ENERGY, "What it draws, and its own price of electricity.", "the swarm's"),
    Key("connect_timeout", Number("seconds", "5", 0.1, 300), "Seconds to wait for a connection.", "5"),
    Key("intermittent", Truth(), "Whether it may be off: then it costs nothing, and nobody waits for it.",
        "false"),
    Key("mac", Text("a network card's address", "01:23:45:67:89:ab",
                    r"^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$", 17),
        "The address of its network card, for wake-on-LAN.", "none"),
    Key("idle_minutes", Number("minutes", "30", 0.1, 1e6),
        "Minutes without a question and without anybody at work there, after which it counts as idle.",
        "never"),
    Key("when_idle", Choice("what happens then", WHEN_IDLE),
        "What `swarmctl idle` does with it then; `doctor` notes it in any case.", "nothing"),
    Key("sleep_command", Listing("a list of words", Text("a word", "sudo"), "[sudo, -n, pm-suspend]", 1),
        "The command, run on the host, that puts it to sleep.", "the system's own, as the user may use it"),
    Key("wake_via", _host_name, "The host that sends the packet, where this machine is on another network.",
        "this machine"),
    Key("wake_on_demand", Truth(),
        "Whether a question that only this host answers well wakes it; another host answers meanwhile.",
        "false"),
), nothing=True)

INVENTORY = Record("inventory", "a mapping with version, models and hosts", (
    Key("version", Whole("the number 1", "1", 1, 1), "The format's version.", required=True),
    Key("ssh_config", Text("a path", "~/.ssh/config"),
        "Read instead of ~/.ssh/config, as with `ssh -F`. Relative to the inventory's folder.",
        "~/.ssh/config"),
    Key("airgap", Text("a folder's path", "./airgap"), "Folder to take runtimes and sources from, instead of "
        "any download. Relative to the inventory's folder.", "none"),
    Key("between_hosts", Choice("a way", BETWEEN_HOSTS),
        "How hosts give each other weights: `trusted`, over the SSH access they have; `auto`, also by "
        "one-time keys that swarmctl makes and removes (see models.md); `never`, all come from this machine.",
        "auto"),
    Key("value_of_time", Number("money per hour", "30", 0, 1e6),
        "What an hour of a person's waiting costs; weighs seconds against energy.", "30"),
    Key("cost_of_bad_answer", Number("seconds", "60", 0, 1e6),
        "What one bad answer costs, in seconds of a person's time.", "60"),
    Key("energy", Record("energy", "a mapping with price and currency", (_price, _currency), nothing=True),
        "The price of electricity for all hosts."),
    Key("routing", ROUTING, "What the router may do beyond taking the cheapest that is likely good enough."),
    Key("models", Table("a mapping of models", _model_name, MODEL), "The models the swarm knows, by name.",
        "none"),
    Key("hosts", Table("a mapping of hosts", _host_name, HOST, least=1), "The machines, by name.",
        required=True),
))


def places(name: str, kind: Kind = INVENTORY, path: str = "") -> list[str]:
    """Where a key of that name may stand: `hosts.NAME.llamacpp` and the like; the top level is empty."""
    if isinstance(kind, Listing):
        return places(name, kind.item, f"{path}[]")
    if isinstance(kind, Table):
        return places(name, kind.item, f"{path}.NAME")
    if not isinstance(kind, Record):
        return []
    found = [path.lstrip(".")] if any(key.name == name for key in kind.keys) else []
    for key in kind.keys:
        found += places(name, key.kind, f"{path}.{key.name}")
    return found
