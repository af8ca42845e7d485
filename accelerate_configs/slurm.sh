#!/bin/bash
# A training on two nodes of eight GPUs under Slurm, that survives preemption and the end of its time: SIGUSR1 comes 120 s
# before, trainkit saves, and the job queues itself again with the same command, which goes on.
#   sbatch accelerate_configs/slurm.sh recipes/seg_ade20k.py --out /shared/runs/seg_ade20k
#SBATCH --job-name=trainkit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

FIRST="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
PROCESSES="$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-8}))"
export FIRST PROCESSES

# One launcher on each node. It would die of SIGUSR1, so it ignores it; the trainings get it from the shell around it.
srun --kill-on-bad-exit=0 bash -c '
    trap "pkill -USR1 -P \$launcher" USR1
    (trap "" USR1; exec accelerate launch --config_file accelerate_configs/multi_node.yaml \
        --num_machines "$SLURM_NNODES" --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$FIRST" -m trainkit "$@") &
    launcher=$!
    while kill -0 $launcher 2>/dev/null; do wait $launcher; code=$?; done
    exit $code
' bash "$@"
code=$?

# The launcher turns 138 (SIGUSR1) into 1, so the folder is asked whether the run stopped so: it is saved, and not done.
out="$(printf '%s\n' "$@" | grep -A 1 -x -e --out | tail -n 1)"
if [ "$code" -ne 0 ] && [ -f "$out/stopped.json" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
