"""Bad input of the command line: a row of the tables in docs/cli.md, how it is made, what is said.

test_cli.py runs every case of BAD; OTHERS are rows that take a test of their own. A test holds the
tables equal to both, and another one asks that every flag of every verb is among them.
"""

from pathlib import Path

LARGE = str(10**10)

# row of the table: (arguments, exit code, what the sentence says)
BAD = {
    "an unknown verb": (["trian"], 2, "did you mean 'train'?"),
    "an unknown flag": (["train", "--step", "3"], 2, "did you mean --steps?"),
    "several unknown flags": (
        ["train", "--lrr", "3", "--sed", "1"], 2,
        "unknown flag '--lrr'; did you mean --lr?; unknown flag '--sed'; did you mean --seed?"),
    "an unknown flag and a bad value": (
        ["train", "--lrr", "3", "--epochs", "0"], 2,
        "did you mean --lr?; epochs: expected at least"),
    "a word too many": (["train", "--seed", "1", "my.txt"], 2, "unexpected argument 'my.txt'"),
    "a value that begins with a dash": (
        ["generate", ".", "--prompt", "-x"], 2, "expected a value, got '-x'; write --prompt=-x"),
    "`--` alone": (["train", "--seed", "1", "--"], 2, "unknown flag '--'"),
    "`--preset` unknown": (["train", "--preset", "tiny-lama"], 2, "did you mean 'tiny-llama'?"),
    "a word where a number is expected": (
        ["train", "--steps", "many", "--lr", "fast", "--sed", "1"], 2,
        "--steps: expected a whole number or None, got 'many'; --lr: expected a number, got "
        "'fast'; unknown flag '--sed'; did you mean --seed?"),
    "`--tokenizer` unknown": (["train", "--tokenizer", "word"], 2, "expected 'character' or 'b"),
    "`--dtype` unknown": (["train", "--dtype", "float16"], 2, "expected 'float32' or"),
    "`--dtype bfloat16` or `--compile` without a torch device": (
        ["train", "--dtype", "bfloat16", "--compile", "graph"], 2, "compile: expected a torch dev"),
    "`--compile` unknown": (["train", "--compile", "on"], 2, "expected 'off' or 'region' or"),
    "`--recompute` with a value": (["train", "--no-recompute", "--recompute", "3"], 2, "got '3'"),
    "`--schedule.name` unknown": (
        ["train", "--schedule.name", "cosin"], 2, "unknown schedule 'cosin': expected one of"),
    "`--schedule.name` of a scheduler that needs a function": (
        ["train", "--schedule.name", "LambdaLR"], 2, "made of a function, which a word cannot be"),
    "`--schedule.unit` unknown": (
        ["train", "--schedule.unit", "batch"], 2, "expected 'step' or 'epoch', got 'batch'"),
    "several settings out of range": (
        ["train", "--lr", "nan", "--threads", "0", "--seed", str(2**64)], 2,
        "got nan; threads: expected at least 1, at most 1024, got 0; seed: "),
    "`--steps` below 1": (["train", "--steps", "0"], 2, "steps: expected at least 1, fewer"),
    "`--steps` of 10^8 or more": (["train", "--steps", str(10**8)], 2, "fewer than 10^8"),
    "`--epochs` below 1": (["train", "--epochs", "0"], 2, "epochs: expected at least"),
    "`--batch-size` below 1": (["train", "--batch-size", "0"], 2, "batch_size: expected at least"),
    "`--batch-size` huge": (["train", "--batch-size", LARGE], 2, "at most 1,000,"),
    "`--accumulate` below 1": (["train", "--accumulate", "0"], 2, "accumulate: expected at least"),
    "`--context` below 1": (["train", "--context", "-1"], 2, "context: expected at least"),
    "`--dropout` outside [0, 1)": (["train", "--dropout", "1"], 2, "dropout: expected a prob"),
    "`--lr` not positive": (["train", "--lr", "-1"], 2, "lr: expected a positive number"),
    "`--beta1` outside [0, 1)": (["train", "--beta1", "1"], 2, "beta1: expected a number in"),
    "`--beta2` outside [0, 1)": (["train", "--beta2", "-1"], 2, "beta2: expected a number in"),
    "`--weight-decay` negative": (["train", "--weight-decay", "-1"], 2, "weight_decay: expected a"),
    "`--clip-norm` not positive": (["train", "--clip-norm", "0"], 2, "clip_norm: expected a"),
    "`--clip-norm` infinite": (["train", "--clip-norm", "inf"], 2, "clip_norm: expected a"),
    "`--schedule.min-lr` not a number": (
        ["train", "--schedule.min-lr", "nan"], 2, "min_lr: expected a finite"),
    "`--schedule.min-lr` above `--lr`": (
        ["train", "--schedule.min-lr", "1"], 2, "expected 0 <= min_lr <= lr=0.001, got 1.0"),
    "`--schedule.warmup-steps` negative": (
        ["train", "--schedule.warmup-steps", "-1"], 2, "warmup_steps: expected at least 0"),
    "a warm-up as long as the run": (
        ["train", "--steps", "50", "--schedule.warmup-steps", "50"], 2,
        "expected fewer than steps=50, got 50"),
    "a warm-up as long as the epochs": (
        ["train", "--data", "ok.txt", "--epochs", "2", "--schedule.warmup-steps", "9"], 2,
        "expected fewer than the 6 steps of this run, got 9"),
    "`--schedule.min-lr` of a schedule without one": (
        ["train", "--schedule.name", "constant", "--schedule.min-lr", "0"], 2,
        "schedule.min_lr: constant has none, got 0.0"),
    "`--schedule.options` that the schedule does not have": (
        ["train", "--schedule.name", "StepLR", "--schedule.options", "step_siz=4"], 2,
        "unknown option 'step_siz': expected one of step_size, gamma; did you mean 'step_size'?"),
    "an option that is not NAME=VALUE": (
        ["train", "--schedule.options", "gamma"], 2, "expected NAME=VALUE, such as momentum=0.9"),
    "an option that the schedule needs": (
        ["train", "--schedule.name", "StepLR"], 2, "needs step_size, got none"),
    "an option that is a function": (
        ["train", "--schedule.name", "CyclicLR", "--schedule.options", "base_lr=0", "max_lr=1",
         "scale_fn=abs"], 2, "scale_fn is a function, which no word can be"),
    "a schedule that fails later": (
        ["train", "--data", "ok.txt", "--schedule.name", "StepLR", "--schedule.options",
         "step_size=0"], 2, "schedule StepLR: "),
    "a schedule whose rate is none": (
        ["train", "--data", "ok.txt", "--schedule.name", "ExponentialLR", "--schedule.options",
         "gamma=-1"], 2, "its rate after 1 steps is -0.001"),
    "`--schedule.parts` missing": (
        ["train", "--schedule.name", "SequentialLR"], 2, "made of parts and need some"),
    "`--schedule.parts` of a schedule without parts": (
        ["train", "--schedule.parts", "LinearLR"], 2, "others have none, got 1 for nanogpt"),
    "`--schedule.parts` that cannot be read": (
        ["train", "--schedule.name", "ChainedScheduler", "--schedule.parts", "LinearLR 'x"], 2,
        "No closing quotation"),
    "a warm-up beside `--schedule.parts`": (
        ["train", "--schedule.name", "ChainedScheduler", "--schedule.parts", "LinearLR",
         "--schedule.warmup-steps", "3"], 2, "takes warm-up and floor from its parts"),
    "`SequentialLR` without milestones": (
        ["train", "--data", "ok.txt", "--schedule.name", "SequentialLR", "--schedule.parts",
         "LinearLR", "nanogpt"], 2, "as the option milestones=[100] or the like, got None"),
    "`--optimizer.name` unknown": (["train", "--optimizer.name", "Adm"], 2, "did you mean 'Adam'?"),
    "`--optimizer.name LBFGS`": (
        ["train", "--optimizer.name", "LBFGS"], 2, "LBFGS steps by a closure only"),
    "`--optimizer.options` that the optimizer does not have": (
        ["train", "--optimizer.options", "momentum=0.9"], 2, "unknown option 'momentum'"),
    "`--optimizer.options` that it refuses": (
        ["train", "--optimizer.name", "SGD", "--optimizer.options", "nesterov=true"], 2,
        "optimizer SGD: Nesterov momentum requires a momentum"),
    "an option of the wrong type": (
        ["train", "--optimizer.name", "SGD", "--optimizer.options", "momentum=[1,2]"], 2,
        "optimizer SGD: a value of the wrong type"),
    "an option beyond all bounds": (
        ["train", "--optimizer.name", "SGD", "--optimizer.options", "momentum=1e400"], 2,
        "momentum: expected a number of at most 10^15"),
    "an option that is code": (
        ["train", "--optimizer.name", "SGD", "--optimizer.options", "momentum=exit()"], 2,
        "momentum: expected a number, a list or a word"),
    "an option that has a flag of its own": (
        ["train", "--optimizer.name", "SGD", "--optimizer.options", "lr=3"], 2, "lr is --lr"),
    "an option beside the flag of the same value": (
        ["train", "--schedule.name", "linear", "--schedule.warmup-steps", "3",
         "--schedule.options", "warmup_steps=4"], 2, "warmup_steps"),
    "an option that only a step refuses": (
        ["train", "--optimizer.name", "Muon", "--optimizer.options", "ns_steps=1000"], 2,
        "optimizer Muon: "),
    "over 100 `--schedule.parts`": (
        ["train", "--schedule.name", "ChainedScheduler", "--schedule.parts",
         *["LinearLR"] * 101], 2, "at most 100"),
    "a part that is itself combined": (
        ["train", "--schedule.name", "ChainedScheduler", "--schedule.parts", "SequentialLR"], 2,
        "SequentialLR"),
    "`--average.start` beyond the run": (
        ["train", "--data", "ok.txt", "--steps", "5", "--schedule.warmup-steps", "0",
         "--average.name", "ema", "--average.start", "5"], 2,
        "average.start: expected fewer than the 5 updates of this run, got 5"),
    "an option twice": (
        ["train", "--optimizer.options", "eps=1e-8", "eps=1e-6"], 2, "eps is given twice"),
    "`--beta1` of an optimizer without": (
        ["train", "--optimizer.name", "SGD", "--beta1", "0.5"], 2, "beta1: SGD has no betas"),
    "`--weight-decay` of an optimizer without": (
        ["train", "--optimizer.name", "Rprop", "--weight-decay", "1"], 2, "has no weight_decay"),
    "`--layer-decay` outside (0, 1]": (["train", "--layer-decay", "0"], 2, "number above 0"),
    "`--windows` without `--epochs`": (
        ["train", "--windows", "0:1", "4:8"], 2, "sizes by epoch need epochs"),
    "`--windows` that is not EPOCH:SIZE": (
        ["train", "--windows", "4", "--epochs", "3"], 2, "expected EPOCH:SIZE, such as 4:8"),
    "`--windows` beside `--accumulate`": (
        ["train", "--windows", "0:1", "--epochs", "3", "--accumulate", "2"], 2,
        "windows: expected no accumulate beside them, got 2"),
    "`--normalise` unknown": (["train", "--normalise", "batch"], 2, "expected 'token' or 'micro"),
    "`--on-nonfinite` unknown": (
        ["train", "--on-nonfinite", "ignore"], 2, "expected 'stop' or 'skip', got 'ignore'"),
    "`--spike-threshold` not positive": (
        ["train", "--spike-threshold", "0"], 2, "spike_threshold: expected a positive number"),
    "`--average.name` unknown": (["train", "--average.name", "sma"], 2, "expected 'ema' or 'swa'"),
    "a flag of the average without `--average.name`": (
        ["train", "--average.decay", "0.9"], 2, "average.decay: needs average.name, got none"),
    "`--average.decay` of an average without": (
        ["train", "--average.name", "swa", "--average.decay", "0.9"], 2,
        "only average.name=ema has one, got swa"),
    "`--average.decay` outside [0, 1]": (
        ["train", "--average.name", "ema", "--average.decay", "2"], 2, "a number in [0, 1]"),
    "`--average.start` negative": (
        ["train", "--average.name", "ema", "--average.start", "-1"], 2, "start: expected at"),
    "`--average.every` below 1": (
        ["train", "--average.name", "ema", "--average.every", "0"], 2, "every: expected at least"),
    "`--average.swa-lr` not positive": (
        ["train", "--average.name", "swa", "--average.swa-lr", "0"], 2, "swa_lr: expected a pos"),
    "`--average.anneal` or `--average.anneal-strategy` without `--average.swa-lr`": (
        ["train", "--average.name", "swa", "--average.anneal", "3", "--average.anneal-strategy",
         "linear"], 2, "average.anneal_strategy: needs average.swa_lr"),
    "`--stop.semantics` unknown": (
        ["train", "--stop.patience", "1", "--stop.semantics", "kears"], 2,
        "expected semantics as one of pytorchtools"),
    "`--stop.baseline` or `--stop.start-from-epoch` without `--stop.semantics keras`": (
        ["train", "--stop.patience", "1", "--stop.baseline", "3", "--stop.start-from-epoch", "2"],
        2, "'pytorchtools' has no baseline, leave it out; those with one: keras"),
    "`--stop.check-finite` or a threshold without `--stop.semantics lightning`": (
        ["train", "--stop.patience", "1", "--stop.check-finite", "True",
         "--stop.divergence-threshold", "9"], 2, "'pytorchtools' has no check_finite"),
    "`--stop.threshold-mode` without `--stop.semantics plateau`": (
        ["train", "--stop.patience", "1", "--stop.threshold-mode", "abs"], 2,
        "'pytorchtools' has no threshold_mode"),
    "`--stop.stopping-threshold` or `--stop.divergence-threshold` not a number": (
        ["train", "--stop.patience", "1", "--stop.semantics", "lightning",
         "--stop.stopping-threshold", "nan"], 2, "a number that is not NaN, got nan"),
    "`--stop.delta` negative": (
        ["train", "--stop.patience", "1", "--stop.delta", "-1"], 2, "expected a delta >= 0"),
    "`--stop.delta` without `--stop.patience`": (
        ["train", "--stop.delta", "0.1"], 2, "stop.delta: needs stop.patience"),
    "a warm-up of a schedule without one": (
        ["train", "--schedule.name", "StepLR", "--schedule.warmup-steps", "5"], 2,
        "StepLR has no warm-up, got 5"),
    "`--schedule.unit epoch` without `--epochs`": (
        ["train", "--schedule.unit", "epoch"], 2, "'epoch' needs epochs"),
    "`--stop.patience` below 1": (["train", "--stop.patience", "0"], 2, "patience >= 1, got 0"),
    "`--stop.delta` not a number": (["train", "--stop.delta", "nan"], 2, "stop.delta: expected a"),
    "`--eval-every` below 1": (["train", "--eval-every", "0"], 2, "eval_every: expected at least"),
    "`--log-every` below 1": (["train", "--log-every", "0"], 2, "log_every: expected at least"),
    "`--checkpoint-every` below 1": (
        ["train", "--checkpoint-every", "0"], 2, "checkpoint_every: expected at least 1"),
    "`--keep` below 1": (["train", "--keep", "0"], 2, "keep: expected at least 1"),
    "`--resume` with settings": (
        ["train", "--resume", "folder", "--lr", "1", "--steps=9"], 2,
        "a run keeps its settings, so leave out --data, --steps, --lr"),
    "`--sample-length` below 1": (
        ["train", "--sample-length", "0"], 2, "sample_length: expected at least"),
    "`--seed` outside 64 bits": (["train", "--seed", str(-(2**64))], 2, "seed: expected -2^63 to"),
    "`--threads` outside 1 to 1024": (["train", "--threads", "5000"], 2, "at most 1024, got 5000"),
    "`--name` empty": (["train", "--name", ""], 2, "name: expected 1 to 100 letters"),
    "`--name` no folder's name": (["train", "--name", "../up"], 2, "got '../up'"),
    "`--device` unknown": (["train", "--device", "gpu"], 1, "expected 'cpu', 'torch:cpu'"),
    "`--config` without a file": (["train", "--config"], 2, "--config: expected a value, got"),
    "`--config` a missing file": (["train", "--config", "no.toml"], 2, "no.toml: no such file"),
    "`--config` a folder": (["train", "--config", "."], 2, "is a folder, expected a file"),
    "`--config` not TOML": (["train", "--config", "ok.txt"], 2, "ok.txt: expected a TOML file"),
    "`--config` not UTF-8": (["train", "--config", "latin.txt"], 2, "expected a TOML file"),
    "unknown settings in the file": (
        ["train", "--config", "unknown.toml"], 2,
        "unknown setting 'lrr'; did you mean 'lr'?; unknown.toml: unknown setting "
        "'schedule.warmup_step'; did you mean 'schedule.warmup_steps'?"),
    "settings of the wrong type in the file": (
        ["train", "--config", "types.toml"], 2, "got 'many'; types.toml: dtype: expected 'float32' "
        "or 'float64' or 'bfloat16', got 'float16'; types.toml: stop: expected a table [stop]"),
    "one setting twice in the file": (
        ["train", "--config", "twice.toml"], 2, "clip_norm: given twice"),
    "a dotted name in quotes in the file": (
        ["train", "--config", "quoted.toml"], 2, "write it in a table: [schedule]"),
    "numbers and lists without end in the file": (
        ["train", "--config", "huge.toml"], 2, "huge.toml: expected a TOML file"),
    "mistakes in the file and in the flags": (
        ["train", "--config", "unknown.toml", "--sed", "1", "--lr", "0"], 2,
        "did you mean --seed?; lr: expected a positive number"),
    "`--data` without a file": (["train", "--seed", "1", "--data"], 2, "--data: expected a value"),
    "`--data` or `--out` empty": (
        ["train", "--data", "", "--out="], 2,
        "--data: expected a path, got ''; --out: expected a path, got ''"),
    "`--data` twice": (
        ["train", "--seed", "1", "--data", "a", "--data", "b"], 2, "--data: given twice"),
    "`--data` a missing file": (["train", "--data", "nowhere.txt"], 3, "nowhere.txt"),
    "`--data` a folder without .txt files": (["train", "--data", "folder"], 3, "folder"),
    "`--data` an empty file": (["train", "--data", "empty.txt"], 3, "empty"),
    "`--data` nothing but white space": (["train", "--data", "white.txt"], 3, "white space"),
    "a text shorter than one window": (
        ["train", "--data", "short.txt"], 3, "needs at least 65 tokens"),
    "`--data` not UTF-8": (["train", "--data", "latin.txt"], 3, "UTF-8"),
    "`--data` UTF-16 text": (["train", "--data", "wide.txt"], 3, "this is UTF-16 text"),
    "`--data` a zip archive": (["train", "--data", "zip.txt"], 3, "this is a zip archive"),
    "`--data` a gzip file": (["train", "--data", "gzip.txt"], 3, "this is a gzip file"),
    "`--out` that cannot be written": (
        ["train", "--data", "ok.txt", "--out", "ok.txt/runs"], 5, "ok.txt"),
    "`--resume` a folder that is no run": (["train", "--resume", "folder"], 3, "run.json"),
    "`--resume newest` without a run": (
        ["train", "--resume", "newest", "--out", "folder"], 3, "found none; train one first"),
    "`check` without a run": (["check"], 2, "RUN is missing: expected nplm check RUN"),
    "`check` on a folder that is no run": (["check", "folder"], 3, "not a run: it holds no run"),
    "`compare` with fewer than two runs": (["compare", "folder"], 2, "two runs or more, got 1"),
    "`compare` on a folder that is no run": (["compare", "folder", "folder"], 3, "run.json"),
    "`presets show` an unknown name": (
        ["presets", "show", "tiny-lama"], 2, "did you mean 'tiny-llama'?"),
    "`presets` with other words": (["presets", "gpt2"], 2, "nplm presets show NAME"),
    "an unknown flag of `doctor`": (["doctor", "--jsn"], 2, "did you mean '--json'?"),
    "`doctor --out` without a folder": (["doctor", "--out"], 2, "--out: expected one argument"),
    "`doctor --out` a file": (["doctor", "--out", "ok.txt"], 1, "ok.txt: is no folder"),
    "`schedule` without a name": (["schedule"], 2, "NAME is missing: expected nplm schedule NAME"),
    "`schedule` of an unknown name": (["schedule", "cosin"], 2, "did you mean 'cosine'?"),
    "`schedule` with a setting it does not have": (
        ["schedule", "linear", "--power", "2"], 2, "unknown setting of schedule 'linear' 'power'"),
    "`schedule` without a setting it needs": (
        ["schedule", "warmup_stable_decay"], 2, "needs decay_steps"),
    "`schedule` with `--steps` or `--lr` out of range": (
        ["schedule", "linear", "--steps", "0", "--lr", "nan"], 2, "0; lr: expected a positive"),
    "`schedule` with a warm-up as long as the run": (
        ["schedule", "linear", "--warmup-steps", "2000"], 2, "below total_steps=1000, got 2000"),
    "`schedule` with a floor above the rate": (
        ["schedule", "cosine_with_min_lr", "--min-lr", "1"], 2, "min_lr_ratio in [0, 1], got 1000"),
    "`lr-find` with a flag that it does not use": (
        ["lr-find", "--lr", "0.1", "--stop.patience", "2"], 2,
        "does not use --lr, --stop.patience"),
    "`lr-find --updates` below 13": (
        ["lr-find", "--updates", "12"], 2, "updates: expected at least 13"),
    "`lr-find --lowest` or `--highest` out of order": (
        ["lr-find", "--lowest", "2"], 2, "0 < lowest < highest, got 2.0 and 1.0"),
    "`lr-find --mode` unknown": (["lr-find", "--mode", "cosine"], 2, "'linear'"),
    "`lr-find --stop-above` not above 1": (
        ["lr-find", "--stop-above", "1"], 2, "stop_above: expected more than 1 or None"),
    "`bench --steps` below 1": (["bench", "--steps", "0"], 2, "steps: expected at least 1"),
    "`bench --vocab-size` below 1": (["bench", "--vocab-size", "-1"], 2, "vocab_size: expected at"),
    "`bench --preset` unknown": (["bench", "--preset", "chra"], 2, "unknown preset 'chra'"),
    "`bench --against` unknown": (["bench", "--against", "jax"], 2, "'torch'"),
    "`parity` with an unknown level": (
        ["parity", "ruun"], 2, "unknown level 'ruun': expected one of ops, layers, model, step"),
    "`parity --steps` below 1": (["parity", "--steps", "0"], 2, "steps: expected at least 1"),
    "`parity --dropout` outside [0, 1)": (
        ["parity", "--dropout", "1"], 2, "dropout: expected a prob"),
    "`parity --seed` negative": (["parity", "--seed", "-1"], 2, "seed: expected 0 to"),
    "`parity --preset` unknown": (
        ["parity", "--preset", "tiny-lama"], 2, "did you mean 'tiny-llama'?"),
    "`parity --dtype` unknown": (
        ["parity", "--dtype", "float16"], 2, "expected 'float64' or 'float32'"),
    "`parity --mode` unknown": (["parity", "--mode", "loose"], 2, "expected 'free' or 'isolated'"),
    "`parity --family` unknown": (
        ["parity", "--family", "bert"], 2, "expected 'gpt2' or 'llama' or 'both'"),
    "`parity --fault` unknown": (
        ["parity", "--fault", "adam-mean"], 2, "unknown fault 'adam-mean': did you mean 'adam-"),
    "`parity --fault` with a level": (
        ["parity", "ops", "--fault", "decay-coupled"], 2, "expected no 'ops'"),
    "`parity --report` with another suffix": (
        ["parity", "--report", "x.pdf"], 2, "ends in .html, .json or .txt"),
    "`parity ops --report` as HTML": (
        ["parity", "ops", "--report", "x.html"], 2, "ops are a table"),
    "`parity --device` unknown": (["parity", "--device", "tpu"], 1, "unknown device 'tpu'"),
    "`generate --weights` unknown": (
        ["generate", ".", "--weights", "mean"], 2, "expected 'average' or 'trained' or None"),
    "`generate` without a run": (["generate"], 2, "RUN is missing: expected nplm"),
    "`generate` on a folder that is no run": (["generate", "."], 3, "run.json"),
    "`--temperature` not a number": (
        ["generate", ".", "--temperature", "nan"], 2, "1e-6 to 1e6, got nan"),
    "`--temperature` tiny": (["generate", ".", "--temperature", "1e-320"], 2, "use 0 for greedy"),
    "`--length` below 1": (["generate", ".", "--length", "-5"], 2, "length: expected at least"),
    "`--top-k` below 1": (["generate", ".", "--top-k", "0"], 2, "top_k: expected at least 1"),
}  # fmt: skip

# row of the table: (exit code, the test that makes it)
_SIGNAL = "test_resume_faults.py::"
_SIGNAL += "test_a_signal_ends_a_run_with_a_checkpoint_and_the_command_that_goes_on"
OTHERS = {
    "a device that this machine lacks": (
        1, "test_cli.py::test_devices_that_are_not_there_are_refused_before_any_work"),
    "a device that needs torch, without torch": (
        1, "test_cli.py::test_a_missing_torch_is_said_in_one_sentence"),
    "safetensors, or threadpoolctl with `--threads`, not installed": (
        1, "test_cli.py::test_a_missing_package_is_said_before_any_work"),
    "`parity` without torch": (
        2, "test_parity_verb.py::test_without_torch_it_says_so_in_one_sentence"),
    "`parity --report` in a folder that is not there": (
        5, "test_parity_verb.py::test_a_folder_that_cannot_be_written_is_a_storage_error"),
    "tyro not installed": (2, "test_cli.py::test_a_missing_package_is_said_before_any_work"),
    "a damaged checkpoint": (3, "test_cli.py::test_a_damaged_checkpoint_is_refused_by_name"),
    "a checkpoint whose config does not fit its weights": (
        3, "test_cli.py::test_a_config_that_does_not_fit_the_weights_builds_no_model"),
    "a checkpoint whose tokenizer cannot be read": (
        3, "test_cli.py::test_a_tokenizer_that_is_none_is_refused_by_name"),
    "`--prompt` with a character the model has never seen": (
        3, "test_cli.py::test_generate_refuses_what_the_model_cannot_do"),
    "`--prompt` empty": (3, "test_cli.py::test_generate_refuses_what_the_model_cannot_do"),
    "a loss or gradient that is not finite": (
        4, "test_cli.py::test_a_loss_that_is_not_finite_ends_with_4"),
    "a run whose text has changed": (3, "test_resume_faults.py::test_another_text_is_refused"),
    "a run without a whole checkpoint": (
        3, "test_resume_faults.py::"
        "test_if_no_checkpoint_is_whole_nothing_is_changed_and_the_run_does_not_begin_again"),
    "a run that ended before its first checkpoint": (
        3, "test_resume_faults.py::"
        "test_a_run_that_ended_before_its_first_checkpoint_is_not_begun_again"),
    "a run that another process trains": (
        6, "test_resume_faults.py::test_a_run_in_use_is_refused_by_the_command_line_with_6"),
    "a disk that is full, read-only or broken": (
        5, "test_resume_storage.py::test_a_disk_that_fails_leaves_the_last_good_checkpoint"),
    "`check` of a run with a damaged part": (
        3, "test_verbs.py::test_check_names_the_damaged_part_and_still_lists_the_others"),
    "`doctor` without a package that training needs": (
        1, "test_doctor.py::test_a_missing_needed_package_is_a_failure_with_its_command"),
    "`doctor` where a self-test fails": (1, "test_doctor.py::test_a_wrong_gradient_is_a_failure"),
    "`schedule --png` a folder": (
        5, "test_schedule_verb.py::test_a_figure_that_cannot_be_written_is_refused_with_its_path"),
    "`schedule --png` without matplotlib": (
        2, "test_schedule_verb.py::test_png_without_matplotlib_says_what_to_install"),
    "standard output that is closed or full": (
        5, "test_cli_faults.py::test_an_output_that_cannot_be_written_ends_with_5"),
    "`bench --against torch` without torch": (
        2, "test_bench.py::"
        "test_nplm_bench_against_a_torch_that_is_not_there_says_how_to_install_it"),
    "`bench` of an engine that computes something else": (
        1, "test_bench.py::test_a_subject_fails_with_code_1_where_an_engine_is_wrong"),
    "Ctrl-C": (130, _SIGNAL),
    "SIGTERM": (143, _SIGNAL),
}  # fmt: skip


def make_files(folder: Path, text: str) -> None:
    """The files that BAD names."""
    (folder / "folder").mkdir()
    (folder / "folder" / "notes.md").write_text(text)
    for name, content in {
        "ok.txt": text.encode(),
        **{"white.txt": b" \n\t", "short.txt": b"a few words", "empty.txt": b""},
        "latin.txt": "naïve".encode("latin-1") * 100,
        "wide.txt": text.encode("utf-16"),
        "zip.txt": b"PK\x03\x04" + bytes(100),
        "gzip.txt": b"\x1f\x8b" + bytes(100),
        "unknown.toml": b"lrr = 1\n[schedule]\nwarmup_step = 3\n",
        "twice.toml": b"clip_norm = 1\nclip-norm = 2\n",
        "quoted.toml": b'"schedule.name" = "StepLR"\n',
        "huge.toml": b"data = " + b"[" * 5000,
        "types.toml": b'steps = "many"\ndtype = "float16"\nstop = 3\n',
    }.items():
        (folder / name).write_bytes(content)
