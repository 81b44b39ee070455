"""Defaults of every run; a dataset's config changes what it needs."""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """Returns the defaults. `None` in a comment means "not set"."""
  config = config_dict.ConfigDict()
  config.seed = 0
  # Parquet score file, from `python -m labeling.scores`.
  config.scores = ""
  # Another run's workdir: start from its first phase instead of training one.
  config.init_from = ""

  config.dataset = config_dict.ConfigDict()
  config.dataset.name = ""  # a reader in ppl_jax/data/readers/
  config.dataset.source = ""  # folder with the original files; "" downloads
  config.dataset.data_dir = "~/.cache/ppl_jax"  # prepared data and tokens
  config.dataset.classes = ()  # for readers that do not know them
  config.dataset.task = "single_label"  # or "multi_label"
  config.dataset.options = config_dict.ConfigDict()  # the reader's own
  # Labels given afterwards, as JSON lines, laid over train's: what the page of
  # `python -m ppl_jax.report` saves.
  config.dataset.gold = ""
  config.dataset.only_scored = False  # train on the score file's dialogues only
  config.dataset.drop_leaks = False  # drop train texts that are in dev or test

  config.votes = config_dict.ConfigDict()
  config.votes.none_label = "none"  # the answer "none of the classes"
  # From labels of votes made for other classes to the class they count as.
  config.votes.counts_as = config_dict.ConfigDict()
  config.votes.split = "train"  # the split that was voted on
  # Soft terms take scores as after so many more votes, which say what the class
  # is like on average. 0 takes the shares as they are.
  config.votes.prior = 1.0

  config.labeling = config_dict.ConfigDict()
  config.labeling.endpoint = "https://api.openai.com/v1"
  config.labeling.model = ""
  config.labeling.bank = "generic"  # of labeling/prompts/, or a file's path
  config.labeling.prompts = ()  # ids in the bank; () draws from all
  config.labeling.votes = 10  # N answers about every utterance
  config.labeling.temperature = 1.0
  config.labeling.top_p = 1.0
  config.labeling.top_k = 0  # 0 does not send it
  config.labeling.max_tokens = 2_048  # of an answer
  config.labeling.max_tokens_name = "max_completion_tokens"  # in the request
  config.labeling.extra_body = config_dict.ConfigDict()  # other fields of it
  config.labeling.structured = "auto"  # a JSON schema where it can; or "never"
  config.labeling.context_turns = 8  # utterances shown before those asked about
  config.labeling.utterances_per_request = 40
  config.labeling.concurrency = 32
  config.labeling.requests_per_minute = 0  # 0: no limit
  config.labeling.tokens_per_minute = 0
  config.labeling.timeout = 120.0  # seconds
  config.labeling.max_tries = 4  # of an answer, in one run
  config.labeling.price_input = 0.0  # money for a million tokens
  config.labeling.price_output = 0.0
  config.labeling.price_batch = 0.5  # share of these that the Batch API takes
  config.labeling.batch_requests = 50_000  # of one batch
  config.labeling.batch_bytes = 190_000_000
  config.labeling.batch_tokens = 0  # waiting in all batches; 0: no limit
  config.labeling.batch_poll = 30.0  # seconds
  config.labeling.api_key_variable = "OPENAI_API_KEY"

  config.segments = config_dict.ConfigDict()
  # Utterances a segment spans, its own included; None: all that fit.
  config.segments.window = config_dict.placeholder(int)
  config.segments.max_length = 128  # tokens; the oldest context goes first
  config.segments.buckets = (32, 48, 64, 96)  # token lengths below max_length
  # Role to token; other speakers are led by their name.
  config.segments.speaker_tokens = config_dict.ConfigDict()

  config.model = config_dict.ConfigDict()
  # Hub name, local folder in Hugging Face layout, or "" for from scratch.
  config.model.pretrained = ""
  config.model.pretrained_layers = 0  # its first so many; 0: all
  # What of a segment the scorer reads: "pooler" (BERT's own), "cls", or "mean"
  # (over the tokens of its utterance); "auto": where a linear probe is best.
  config.model.pooling = "auto"
  config.model.warm_start = True  # the scorer starts as that linear probe
  config.model.dropout = 0.1
  config.model.dtype = "float32"  # compute; or "bfloat16"
  config.model.remat = False  # compute layers twice to save their memory
  # From scratch only.
  config.model.vocab_size = 4_096
  config.model.hidden_size = 128
  config.model.num_layers = 3
  config.model.num_heads = 4
  # About 1 / sqrt(hidden_size); BERT's 0.02 starts a narrow encoder too flat.
  config.model.initializer_range = 0.08

  config.batch = config_dict.ConfigDict()
  config.batch.segments = 32  # rows of a training batch, over all shards
  config.batch.eval_segments = 128
  # Parts of a batch that hold whole dialogues: a multiple of the number of
  # devices, times `accumulation`. 0: the least, as found when a run starts; it
  # goes on with them on other devices, as long as these divide them.
  config.batch.shards = 0
  # A device's shards run in so many parts, one after another: less memory.
  config.batch.accumulation = 1

  # Devices: how often the parameters are there, and over how many they are cut;
  # -1: the rest. Dialogues are spread over all of them.
  config.mesh = config_dict.ConfigDict()
  config.mesh.data = -1
  config.mesh.fsdp = 1

  config.pretrain = config_dict.ConfigDict()
  # A set of terms: auto, pairwise, pointwise, joint, softmax, plurality,
  # swapped, paper or none, see `ppl_jax/objective.py`. auto is swapped pairs +
  # softmax, or soft pairs + one-versus-rest where each class is decided alone.
  config.pretrain.objective = "auto"
  config.pretrain.terms = config_dict.ConfigDict()  # weights; None: the set's
  for term in (
    "pairs",
    "swapped_pairs",
    "one_versus_rest",
    "softmax",
    "plurality",
  ):
    config.pretrain.terms[term] = config_dict.placeholder(float)
  config.pretrain.heldout_fraction = 0.1  # of scored dialogues, for choices
  config.pretrain.epochs = 3
  config.pretrain.min_steps = 600  # small corpora get more epochs
  config.pretrain.evals = 8  # evaluations, spread evenly
  config.pretrain.patience = 4  # evaluations without a better one
  config.pretrain.freeze_encoder = False
  config.pretrain.optimizer = _optimizer()

  config.pairs = config_dict.ConfigDict()
  config.pairs.targets = "soft"  # weight S_i (1 - S_j); or "hard"
  # The margin's share of the score difference, in [0, 1]. None: 1/2 with hard
  # targets, as in the paper, and 0 with soft ones.
  config.pairs.alpha = config_dict.placeholder(float)
  config.pairs.group_size = 8  # K; `paper` draws pairs two by two
  config.pairs.equal_labels = False  # the formula's literal form
  config.pairs.scope = "intra"  # or "cross": pairs of different dialogues

  config.finetune = config_dict.ConfigDict()
  # Share of the gold to use, in train and in dev, for experiments; 1: all.
  config.finetune.gold_fraction = 0.01
  # With votes and fewer labels than this, in train and dev together, the scorer
  # alone is fitted to them; with more, the whole student is trained.
  config.finetune.min_labels = 300
  config.finetune.batch_segments = 16  # gold rows of a batch
  config.finetune.vote_weight = 1.0  # of the first phase's loss, kept in
  config.finetune.vote_segments = 16  # scored rows of a batch, beside the gold
  config.finetune.freeze_encoder = False
  config.finetune.epochs = 10  # of the gold
  config.finetune.min_steps = 100
  config.finetune.evals = 10
  config.finetune.patience = 5
  config.finetune.optimizer = _optimizer()

  config.log_every = 10  # steps
  config.checkpoint_every = 200  # steps; also at every evaluation
  # Splits to report on whole. With "validation" the whole dev gold is reported
  # too, marked dev_full: choices see no more of it than finetune.gold_fraction.
  config.report = ("test",)
  # Trains what anybody could, beside the student: the majority class, TF-IDF
  # with a logistic regression, and a linear probe of the encoder.
  config.baselines = True
  return config


def _optimizer() -> config_dict.ConfigDict:
  optimizer = config_dict.ConfigDict()
  # Of the encoder. None: 0.08 / its hidden size, 2e-4 for MiniLM, 1e-4 for
  # BERT-base.
  optimizer.learning_rate = config_dict.placeholder(float)
  optimizer.scorer_learning_rate = 1e-3
  optimizer.warmup_fraction = 0.1
  optimizer.weight_decay = 0.01
  optimizer.clip_norm = 1.0
  return optimizer
