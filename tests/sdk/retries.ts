import { Code, ConnectError, createCartClient, errorDetails, pages } from "cart-grpc";
import { createNodeTransport } from "cart-grpc/node";

const transport = createNodeTransport(process.argv[2]!, { token: () => "a-token" });
const client = createCartClient(transport, { timeoutMs: 5000 });
const add = () => client.addItem({ parent: "users/alice/carts/default", item: { sku: "beans" } });
console.log((await add()).item?.quantity);
try {
  await add();
} catch (error) {
  console.log(Code[ConnectError.from(error).code], errorDetails(error).reason, errorDetails(error).metadata["limit"]);
}
try {
  await client.addItem({}, { timeoutMs: 300 });
} catch (error) {
  console.log(Code[ConnectError.from(error).code]);
}
const list = async ({ pageToken }: { pageToken?: string }) => ({ pageToken, nextPageToken: pageToken === "2" ? "" : "2" });
for await (const page of pages(list, {})) {
  console.log(`page ${page.pageToken}`);
}
transport.close();
