cp -r "$ROOT/server/upt_server/capacity/costs.json" .
