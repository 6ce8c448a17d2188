#!/usr/bin/env bash
# Reproduces all published tables, in about eight hours on 2 cores. Runs that
# results/*.jsonl have are not repeated; remove these files to repeat all runs.
# SBI_MULTILEVEL_CAMELS must name the file of CAMELS power spectra, SBI_MULTILEVEL_OU2
# the file of the published OU2 simulations.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p results
python=${1:-python}
out=results
failed=0

run() { # name, then the arguments of the benchmark
    name=$1
    shift
    # a failure does not end the script
    "$python" -m sbi_multilevel_benchmarks "$@" --workers 2 --out "$out/$name.jsonl" ||
        failed=1
}

for task in camels camels-shuffled; do
    run "$task" "$task" --methods high low ml ml-paired ml-paper oracle
done
run g-and-k-posterior g-and-k-posterior --num-simulations 1000,10 1000,50 1000,100 \
    --methods high low ml-paper ml-bounded hybrid
run g-and-k-posterior g-and-k-posterior \
    --methods mf ml-own ml-paper-unaligned ml-paper-rescale ml-paper-project ml-paper-none
run toggle-switch-ablation toggle-switch \
    --methods ml-paper ml-paper-project ml-paper-rescale ml-paper-none
run toggle-switch toggle-switch --methods high equal-cost low ml ml-paired oracle
run g-and-k g-and-k --num-simulations 10000,50 10000,100 10000,300 --methods high ml ml-paired ml-paper
run g-and-k-plain g-and-k --methods low oracle
# MLNPE and MLNLE as they are by default
run ou ou --num-simulations 1000,10 1000,50 1000,100 --methods ml-bounded
run g-and-k g-and-k --num-simulations 10000,50 10000,100 10000,300 --methods ml-bounded
for task in camels camels-shuffled; do
    run "$task" "$task" --methods ml-bounded
done
run toggle-switch toggle-switch --methods ml-bounded
run ou ou --num-simulations 1000,50 --methods high low ml ml-paired oracle

run ou2-published ou2-published --num-simulations 10000,50 10000,100 10000,1000 --methods high mf mf-unaligned
for task in ou3 ou4 slcp sir; do
    run "$task" "$task" --num-simulations 10000,50 10000,100 --methods high mf
done
for task in ou2-useless ou2-delta1-reversed; do
    run "$task" "$task" --num-simulations 10000,50 --methods high mf mf-unaligned
done

for task in ou2-delta0.1 ou2-delta1 ou-reverse; do
    run "$task" "$task" --num-simulations 10000,50 --methods high mf
done
run ou2-rounds ou2-published --num-simulations 10000,50 10000,100 --observations 10 \
    --methods mf mf-ensemble mf-tsnpe mf-tsnpe-af
run ou2-high-ensembles ou2-published --num-simulations 10000,50 10000,100 --observations 10 \
    --methods high high-ensemble
run allocation allocation

# the hybrid method: developed on the first four tasks, then run on the others
run ou2-published ou2-published --num-simulations 10000,50 10000,100 10000,1000 --methods hybrid
run camels camels camels-shuffled --methods hybrid
run g-and-k g-and-k --num-simulations 10000,50 10000,100 10000,300 --methods hybrid
run ou ou --num-simulations 1000,10 1000,50 1000,100 --methods high ml mf hybrid
for task in slcp sir ou4; do
    run "$task" "$task" --num-simulations 10000,50 10000,100 --methods hybrid
done
run toggle-switch toggle-switch --methods hybrid
run useless ou-useless g-and-k-useless --methods high high-hybrid hybrid
run ou2-useless ou2-useless --num-simulations 10000,50 --methods high-hybrid hybrid
run blob blob --num-simulations 1000,50 1000,100 --methods high mf hybrid
run validation validation-{biased,reversed,half,heavy,misleading,heavy-both,noisier,grid,nearly-exact} \
    validation-{biased,reversed,misleading,heavy}:paired=no --methods mf hybrid
run ablation camels-shuffled g-and-k --methods hybrid hybrid-unaligned hybrid-unpaired \
    hybrid-untransformed hybrid-unrehearsed hybrid-unmixed hybrid-scratch high-hybrid
run oracles slcp sir ou4 ou2-published --methods oracle

"$python" -m sbi_multilevel_benchmarks overhead | tee "$out/overhead.md"
"$python" -m sbi_multilevel_benchmarks cost | tee "$out/cost.md"
"$python" -m sbi_multilevel_benchmarks report "$out"/*.jsonl --out ../results/report
exit "$failed"
