#!/usr/bin/env bash
# A one-node SLURM on this machine runs the study while jobs are being killed; its tables must be those of a local run, to the byte.
# Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge, and snakemake with its cluster-generic plugin.
set -euo pipefail
cd "$(dirname "$0")/.."
SNAKEMAKE=${SNAKEMAKE:-snakemake} COMMAND=${COMMAND:-em-repro} PROFILE=${PROFILE:-smoke} KILLS=${KILLS:-3}
for needed in slurmctld slurmd sbatch munged "$SNAKEMAKE" "$COMMAND"; do
    command -v "$needed" > /dev/null || { echo "no $needed: apt-get install slurmctld slurmd slurm-client munge; pip install -e '.[cluster]'"; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "starting slurmd and munged needs root"; exit 2; }

DIR=$(mktemp -d) HOST=$(hostname)
mkdir -p "$DIR/state" "$DIR/spool" "$DIR/log" /run/munge
chown munge: /run/munge
export SLURM_CONF="$DIR/slurm.conf"
cat > "$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/ctld.pid
SlurmdPidFile=$DIR/d.pid
SlurmctldLogFile=$DIR/log/ctld.log
SlurmdLogFile=$DIR/log/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MinJobAge=600
JobRequeue=0
SlurmctldPort=16817
SlurmdPort=16818
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/Mem/ {print int($2 * .9)}') State=UNKNOWN
PartitionName=main Nodes=$HOST Default=YES MaxTime=INFINITE State=UP
CONF
pgrep -x munged > /dev/null || runuser -u munge -- munged
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF" -N "$HOST"
stop() { for pid in d ctld; do [ -f "$DIR/$pid.pid" ] && kill "$(cat "$DIR/$pid.pid")" || true; done; }
trap stop EXIT
for _ in $(seq 30); do sinfo -h -o %T 2> /dev/null | grep -q idle && break; sleep 1; done
sinfo

OUT=runs/slurm
rm -rf "$OUT"
"$SNAKEMAKE" -s workflow/Snakefile --profile workflow/profiles/sbatch --config profile="$PROFILE" out="$OUT" command="$(command -v "$COMMAND")" &
RUN=$!
killed=0
while kill -0 $RUN 2> /dev/null && [ "$killed" -lt "$KILLS" ]; do
    sleep $((5 + RANDOM % 15))
    job=$(squeue -h -t R -o %i | shuf -n 1)
    if [ -n "$job" ]; then echo "killing job $job"; scancel --signal=KILL --full "$job" || true; killed=$((killed + 1)); fi
done
wait $RUN
[ -f "runs/$PROFILE/claims.json" ] || "$COMMAND" reproduce --profile "$PROFILE" --out "runs/$PROFILE"
for table in "runs/$PROFILE"/tables/*.csv; do
    case "$(basename "$table")" in choices*|mitigations*|rivals*) continue ;; esac   # of notebooks that the workflow does not run
    cmp "$table" "$OUT/tables/$(basename "$table")"
done
echo "$killed jobs were killed; the tables are those of the local run to the byte"
