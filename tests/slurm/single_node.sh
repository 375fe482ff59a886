#!/usr/bin/env bash
# A real SLURM of one node on this machine's loopback, for tests: single_node.sh up|down STATE_FOLDER
# Needs root and Debian's packages slurm-wlm and munge. The configuration lies in the state folder, nowhere else.
set -euo pipefail
action=${1:?up or down}
state=$(realpath -m "${2:?state folder}")
host=$(hostname -s)
export SLURM_CONF=$state/slurm.conf

up() {
    mkdir -p "$state"/{controller,node} /run/munge
    chown munge: /run/munge
    cat > "$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/node
SlurmctldPidFile=$state/controller.pid
SlurmdPidFile=$state/node.pid
SlurmctldLogFile=$state/controller.log
SlurmdLogFile=$state/node.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    if ! munge -n > /dev/null 2>&1; then
        su -s /bin/bash munge -c "/usr/sbin/munged --pid-file /run/munge/munged.pid"
        touch "$state/started-munge"
    fi
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF"
    for _ in $(seq 60); do
        # Only a job that has run proves it.
        if srun --immediate=5 --ntasks=1 true > /dev/null 2>&1; then exit 0; fi
        sleep 0.5
    done
    echo "SLURM did not come up:" >&2
    tail -n 20 "$state"/*.log >&2
    exit 1
}

down() {
    # Only what this script started, by the process ids it left.
    for file in "$state/node.pid" "$state/controller.pid"; do
        if [ -f "$file" ]; then kill "$(cat "$file")" 2> /dev/null || true; fi
    done
    if [ -f "$state/started-munge" ]; then kill "$(cat /run/munge/munged.pid)" 2> /dev/null || true; fi
}

"$action"
