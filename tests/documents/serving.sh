fill
publish people alike
upt-zoo tag sst2:1.0.1 stable
upt-zoo tag sst2:1.0.1 canary
python -m trustme -q -d .
printf 'a gripping film\na dull mess\n' > reviews.txt
printf '{"sentence": "a gripping film"}\n{"sentence": "a dull mess"}\n' > reviews.jsonl
printf 'left,right\nHe sold it.,It was sold.\n' > pairs.csv
# deploy/server.toml names the directories of a container
export UPT_ZOO_HOME=$store UPT_SERVER_WARM_START=$PWD/working-set.json
