"""A chain of stages as a user of submitit submits it: one executor, and a stage as one `map_array` behind the one before.

usage: submitit_chain.py array|single FOLDER STAGES SEEDS; prints the last job id. `single` is one job a cell, submitit's own pause between two of them
left out.
"""

import sys

import submitit


def run_stage(stage, seed, lr):
    raise NotImplementedError(f"stage {stage}, seed {seed}, lr {lr}: the bench submits and never runs")


def main():
    how, folder, stages, seeds = sys.argv[1], sys.argv[2], int(sys.argv[3]), range(int(sys.argv[4]))
    executor = submitit.SlurmExecutor(folder)
    executor._throttling = 0.0
    executor.update_parameters(time=60, cpus_per_task=1, mem="1GB")
    last, before = None, {}
    for stage in range(stages):
        executor.update_parameters(job_name=f"stage{stage}")
        if how == "array":
            if last:
                executor.update_parameters(additional_parameters={"dependency": f"aftercorr:{last.split('_')[0]}"})
            jobs = executor.map_array(run_stage, [stage] * len(seeds), seeds, [1e-5] * len(seeds))
            last = jobs[-1].job_id
            continue
        for seed in seeds:
            if stage:
                executor.update_parameters(additional_parameters={"dependency": f"afterok:{before[seed]}"})
            last = before[seed] = executor.submit(run_stage, stage, seed, 1e-5).job_id
    print(last)


main()
