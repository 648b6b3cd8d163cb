import { createConnectTransport } from "@connectrpc/connect-web";
import { Code, ConnectError, createCartClient, errorDetails, watchCart } from "cart-grpc";

const client = createCartClient(createConnectTransport({ baseUrl: process.argv[2]!, useBinaryFormat: true }));
const parent = "users/connect/carts/default";
console.log((await client.addItem({ parent, item: { sku: "kettle" }, maxWait: { seconds: 10n } })).item?.reservation?.state);
for await (const cart of watchCart(client, parent)) {
  console.log(cart.itemCount);
  break;
}
try {
  await client.addItem({ parent, item: { sku: "" } });
} catch (error) {
  console.log(Code[ConnectError.from(error).code], errorDetails(error).fields.map(({ field }) => field));
}
