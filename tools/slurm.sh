#!/usr/bin/env bash
# A one-node SLURM on this machine runs the study while jobs are being killed; its tables must be
# those of a local run, to the byte. Takes about ten minutes on two cores with the profile smoke.
#
# usage: tools/slurm.sh [--help]
#
#   PROFILE=smoke   what to run
#   KILLS=3         jobs to kill
#   CLUSTER=slurm   Snakemake's own plugin (without accounting) in place of sbatch
#
# Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge, and snakemake with its
# cluster-generic plugin: .venv/bin/pip install -c constraints.txt -e ".[cluster]"
set -euo pipefail
if [ $# -gt 0 ]; then sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
[ ! -d .venv/bin ] || PATH="$PWD/.venv/bin:$PATH"
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
# A job of the plugin does not keep SLURM_CONF.
[ -e /etc/slurm/slurm.conf ] || { mkdir -p /etc/slurm; ln -s "$SLURM_CONF" /etc/slurm/slurm.conf; LINKED=1; }
stop() { [ -z "${RUN:-}" ] || kill "$RUN" 2> /dev/null || true; [ -z "${LINKED:-}" ] || rm -f /etc/slurm/slurm.conf; for pid in d ctld; do [ -f "$DIR/$pid.pid" ] && kill "$(cat "$DIR/$pid.pid")" || true; done; }
trap stop EXIT
for _ in $(seq 30); do sinfo -h -o %T 2> /dev/null | grep -q idle && break; sleep 1; done
sinfo

OUT=runs/slurm
rm -rf "$OUT" && mkdir -p "$OUT"
"$SNAKEMAKE" -s workflow/Snakefile --profile "workflow/profiles/${CLUSTER:-sbatch}" --latency-wait 10 \
    $([ "${CLUSTER:-}" != slurm ] || echo --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5) \
    --config profile="$PROFILE" out="$OUT" command="$(command -v "$COMMAND")" > "$OUT/snakemake.log" 2>&1 &
RUN=$!
killed=0
while kill -0 $RUN 2> /dev/null && [ "$killed" -lt "$KILLS" ]; do
    sleep $((3 + RANDOM % 8))
    # Only while stages are being computed: a job that is still being started loses nothing. Killed ones leave old files here.
    computing=$(find "$OUT/store/.progress" -name '*.json' -newermt '4 seconds ago' 2> /dev/null | head -1)
    [ -n "$computing" ] || continue
    job=$(squeue -h -t R -o %i | shuf -n 1)
    [ -n "$job" ] && scancel --signal=KILL --full "$job" || continue
    killed=$((killed + 1)); echo "killed job $job while computing: $(grep -o '"label": "[^"]*"' "$computing" 2> /dev/null || true)"
done
wait $RUN || { tail -40 "$OUT/snakemake.log"; exit 1; }
again=$(grep -c "Trying to restart job" "$OUT/snakemake.log" || true)
[ "$killed" -ge 1 ] && [ "$again" -ge 1 ] || { echo "$killed jobs were killed and $again were submitted again: the run was over too soon, which tests nothing"; exit 1; }

"$COMMAND" reproduce --profile "$PROFILE" --out "runs/$PROFILE"
tables=$(cd "$OUT" && find tables -name '*.csv')
for file in $tables claims.json; do cmp "$OUT/$file" "runs/$PROFILE/$file"; done
echo "$killed jobs were killed, $again submitted again; $(wc -w <<< "$tables") tables and the ledger are those of the local run to the byte"
