"""Every flag with its default and another value, and the example commands."""

from __future__ import annotations

from typing import Any

# flag: (default, another value as text, the same value parsed). The types of floats and integers matter.
FLAGS: dict[str, tuple[Any, str, Any]] = {
    "env": ("cartpole_swingup", "walker_walk", "walker_walk"),
    "action_repeat": (4, "2", 2),
    "time_limit": (None, "500", 500),
    "image_size": (84, "64", 64),
    "frame_stack": (3, "4", 4),
    "floor": ("suite", "coloured", "coloured"),
    "preset": (None, "dreamer", "dreamer"),
    "num_train_steps": (1_000_000, "2000", 2000),
    "agent_steps_per_update": (1, "2", 2),
    "num_train_iters": (1, "3", 3),
    "num_seed_steps": (1000, "0", 0),
    "replay_buffer_capacity": (100_000, "5000", 5000),
    "seed": (1, "0", 0),
    "num_skills": (10, "3", 3),
    "skill_embedding_dim": (10, "0", 0),
    "skill_embedding_init": ("normal", "orthogonal", "orthogonal"),
    "skill_sampling": ("uniform", "stratified", "stratified"),
    "discriminator_encoder": ("separate", "shared", "shared"),
    "discriminator_ensemble": (1, "2", 2),
    "discriminator_window": (None, "500", 500),
    "intrinsic_reward_from": ("after", "before", "before"),
    "precision": ("fp32", "bf16", "bf16"),
    "augmentation": ("shift", "none", "none"),
    "cuda_graphs": (True, "false", False),
    "batch_size": (128, "512", 512),
    "discount": (0.99, "0.9", 0.9),
    "lr": (1e-3, "3e-4", 3e-4),
    "lr_discriminator": (1e-3, "3e-4", 3e-4),
    "image_pad": (4, "0", 0),
    "init_temperature": (0.1, "0.5", 0.5),
    "actor_update_frequency": (2, "1", 1),
    "critic_tau": (0.01, "1", 1.0),
    "critic_target_update_frequency": (2, "4", 4),
    "encoder_feature_dim": (50, "20", 20),
    "hidden_dim": (1024, "64", 64),
    "hidden_depth": (2, "3", 3),
    "log_std_bounds": ((-10.0, 2.0), "-5 1.5", (-5.0, 1.5)),
    "eval_frequency": (5000, "0", 0),
    "num_eval_episodes": (1, "3", 3),  # for each of ten skills; 10 without skills
    "eval_workers": (0, "2", 2),
    "log_frequency_step": (10_000, "7", 7),
    "checkpoint_frequency": (5000, "0", 0),
    "save_replay_buffer": (True, "false", False),
    "snapshot_frequency": (0, "100", 100),
    "deterministic": (False, "true", True),
    "log_save_tb": (True, "false", False),
    "track": ("none", "trackio", "trackio"),
    "save_video": (True, "false", False),
    "notes": ("", "thought", "thought"),
    "work_dir": ("runs", "elsewhere/runs", "elsewhere/runs"),
}
# Weights of rewards. Not in FLAGS: two have derived defaults, the third is refused without an ensemble.
COEFFICIENTS = ("extrinsic_reward_coeff", "diayn_intrinsic_reward_coeff", "disdain_coeff")
# Flags whose defaults follow from other flags, or that name another run.
DERIVED = (
    *("device", "num_train_frames", "temperature", "resume", "run_name"),
    *("finetune_from", "finetune_skill", "finetune_critic", "finetune_snapshot"),
    *COEFFICIENTS,
)

INTEGERS = [name for name, (_, _, value) in FLAGS.items() if type(value) is int] + ["num_train_frames"]
FLOATS = [name for name, (_, _, value) in FLAGS.items() if type(value) is float] + [*COEFFICIENTS]
BOOLEANS = [name for name, (_, _, value) in FLAGS.items() if type(value) is bool]
CHOICES = {
    "augmentation": ("shift", "cutout", "hflip", "vflip", "rotation", "intensity", "none"),
    "preset": ("planet", "dreamer", "skills", "planet+skills", "dreamer+skills"),
    "discriminator_encoder": ("shared", "separate"),
    "finetune_critic": ("pretrained", "scratch"),
    "floor": ("suite", "coloured"),
    "intrinsic_reward_from": ("before", "after"),
    "precision": ("fp32", "bf16"),
    "skill_embedding_init": ("normal", "orthogonal"),
    "skill_sampling": ("uniform", "stratified"),
    "temperature": ("auto", "fixed", "learned"),
    "track": ("none", "wandb", "trackio"),
}
BELOW_RANGE = {
    **dict.fromkeys(("action_repeat", "time_limit", "frame_stack", "num_train_steps", "num_train_frames"), "0"),
    **dict.fromkeys(("num_train_iters", "replay_buffer_capacity", "batch_size", "image_size", "hidden_dim"), "0"),
    **dict.fromkeys(("encoder_feature_dim", "actor_update_frequency", "critic_target_update_frequency"), "0"),
    **dict.fromkeys(("agent_steps_per_update", "discriminator_ensemble", "discriminator_window"), "0"),
    **dict.fromkeys(("num_eval_episodes", "log_frequency_step", "lr", "lr_discriminator"), "0"),
    **dict.fromkeys(("init_temperature", "critic_tau"), "0"),
    **dict.fromkeys(("num_seed_steps", "seed", "num_skills", "skill_embedding_dim", "image_pad"), "-1"),
    **dict.fromkeys(
        ("eval_frequency", "eval_workers", "hidden_depth", "checkpoint_frequency", "snapshot_frequency"), "-1"
    ),
    **dict.fromkeys(("discount", "extrinsic_reward_coeff", "diayn_intrinsic_reward_coeff", "disdain_coeff"), "-0.1"),
}
ABOVE_RANGE = {
    **{"discount": "1.01", "critic_tau": "1.01", "image_size": "4097", "hidden_depth": "1001", "seed": str(2**64)},
    **{"discriminator_ensemble": "1001", "image_pad": "4097"},
}  # torch's generators take 64 bits

DIAYN_COMMAND = (
    "--task dmc_walker_run --num_skills 10 --num_train_steps 1000000 --encoder_feature_dim 50 --lr 3e-4 "
    "--lr_discriminator 3e-4 --save_video True --log_save_tb True --time_limit 1000 --action_repeat 2 "
    "--framestack 3 --num_eval_episodes 1"
)
DRQ_COMMAND = (
    "--env cartpole_swingup --num_skills 0 --num_train_steps 100000 --encoder_feature_dim 50 --lr 1e-3 "
    "--save_video --log_save_tb"
)
