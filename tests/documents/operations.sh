fill
serve
echo a-token > ops.token
