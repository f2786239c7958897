#!/bin/sh
# Checks the deployment's templates, the root as SAM sees it and every part by the linter, and the shell scripts. Needs
# no account. Usage: validate.sh <folder of sam, cfn-lint and shellcheck>
set -eu
bin=$1
export SAM_CLI_TELEMETRY=0

"$bin/shellcheck" tools/*.sh infra/*.sh .ci/run
# A region decides which resource types there are; any one will do.
"$bin/sam" validate --lint --region eu-west-1 --template template.yaml >/dev/null
exec "$bin/cfn-lint" --regions eu-west-1 --template template.yaml infra/*.yaml infra/table.json
