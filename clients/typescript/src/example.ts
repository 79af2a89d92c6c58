// Asks two adapters of a running upt-server in one call: `npm start -- 127.0.0.1:8001`.
// Types come from the .proto file, by `npm run generate`.

import { join } from "node:path";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { ProtoGrpcType } from "./generated/inference";
import type { InferenceClient } from "./generated/upt/v1/Inference";
import type { Output__Output } from "./generated/upt/v1/Output";
import type { PredictRequest } from "./generated/upt/v1/PredictRequest";
import type { PredictResponse__Output } from "./generated/upt/v1/PredictResponse";

const PROTOS = join(__dirname, "../../../protos/upt_protos/v1");
const TIMEOUT_MS = 30_000;

/** Connects in the clear, which a server on this machine takes; elsewhere use `createSsl`. */
export function connect(target: string): InferenceClient {
  // as the generated types say it: `npm run generate` has the same choices
  const choices = { longs: String, enums: String, defaults: true, oneofs: true };
  const definition = loadSync(join(PROTOS, "inference.proto"), choices);
  const { upt } = grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType;
  return new upt.v1.Inference(target, grpc.credentials.createInsecure());
}

/** Answers a call; rejects with the `ServiceError` that the server met. */
export function predict(
  client: InferenceClient,
  request: PredictRequest,
): Promise<PredictResponse__Output> {
  const deadline = Date.now() + TIMEOUT_MS;
  return new Promise((resolve, reject) => {
    client.predict(request, { deadline }, (error, response) =>
      response === undefined ? reject(error) : resolve(response),
    );
  });
}

/** Says an answer in a word. */
export function wordOf(output: Output__Output): string {
  switch (output.answer) {
    case "label":
      return output.label?.label ?? "";
    case "span":
      return output.span?.text ?? "";
    case "value":
      return String(output.value?.value);
    default:
      return output.answer ?? "no answer";
  }
}

async function main(target: string): Promise<void> {
  const client = connect(target);
  try {
    const { outputs } = await predict(client, {
      inputs: [
        { adapter: "sst2", texts: ["a gripping, funny film"] },
        { adapter: "squad", texts: ["Who wrote it?", "The report was written by Ada."] },
      ],
    });
    for (const output of outputs) {
      const { name, version } = output.adapter ?? { name: "", version: "" };
      console.log(`${name}:${version} ${wordOf(output)}`);
    }
  } finally {
    client.close();
  }
}

main(process.argv[2] ?? "127.0.0.1:8001").catch((error: grpc.ServiceError) => {
  const status = error.code === undefined ? "" : `${grpc.status[error.code]}: `;
  console.error(`${status}${error.details ?? error.message}`);
  process.exitCode = 1;
});
