// One column's requantizer: bias and zero-point correction, multiply, round and shift, output zero point, clamp. In the
// factored modes the bias waits: multiply, round and shift a second time, add it, drop the fraction bits.
//
// REQUANT_LATENCY registers lie between the accumulator's sum and the result; npu_types says where.

module npu_requantizer
  import npu_machine::*;
  import npu_types::*;
(
    input  logic                           clk,
    input  logic                           valid,
    input  logic signed [    ACC_BITS-1:0] acc,
    input  logic signed [ROW_SUM_BITS-1:0] row_sum,
    input  logic signed [            47:0] bias,
    input  logic signed [             7:0] zero_point,
    input  scale_t                         scale,
    input  logic        [             3:0] fraction_bits,
    input  logic        [             3:0] out_type,
    input  logic signed [            31:0] out_zero_point,
    output logic                           result_next,  // `result` gets a value at the end of this cycle
    output logic signed [            31:0] result,
    output logic                           overflow      // of the corrected sum
);
  // 1. the accumulated sum
  logic valid1, valid2, valid3, valid4, valid5;
  scale_t scale1, scale2, scale3, scale4, scale5;
  logic signed [ACC_BITS-1:0] acc1;
  logic signed [ROW_SUM_BITS-1:0] row_sum1;
  logic signed [47:0] bias1;
  logic signed [7:0] zero_point1;
  npu_delay #(
      .BITS (1 + $bits(scale_t) + ACC_BITS + ROW_SUM_BITS + 48 + 8),
      .DEPTH(SUM_DEPTH)
  ) sum_stage (
      .clk,
      .in ({valid, scale, acc, row_sum, bias, zero_point}),
      .out({valid1, scale1, acc1, row_sum1, bias1, zero_point1})
  );

  // 2. bias and zero-point correction, exact in 64 bits, then narrowed to the accumulator's width
  wire signed [63:0] correction = 64'(zero_point1) * 64'(row_sum1);
  wire signed [63:0] exact = 64'(acc1) + 64'(bias1) - correction;
  logic signed [ACC_BITS-1:0] narrowed;
  logic narrow_overflow;
  npu_narrow #(.IN_BITS(64), .OUT_BITS(ACC_BITS), .MODE(OVERFLOW)) narrow (
      .in(exact), .out(narrowed), .overflow(narrow_overflow)
  );
  assign overflow = valid1 && narrow_overflow;

  logic signed [ACC_BITS-1:0] corrected;
  npu_delay #(.BITS(1 + $bits(scale_t) + ACC_BITS), .DEPTH(CORRECTED_DEPTH)) corrected_stage (
      .clk, .in({valid1, scale1, narrowed}), .out({valid2, scale2, corrected})
  );

  // 3. multiply: at most 48 + 15 or 32 + 31 bits, so that rounding cannot overflow 64
  wire signed [63:0] exact_product = 64'(corrected) * $signed(64'(scale2.multiplier));
  logic signed [63:0] product;
  npu_delay #(.BITS(1 + $bits(scale_t) + 64), .DEPTH(PRODUCT_DEPTH)) product_stage (
      .clk, .in({valid2, scale2, exact_product}), .out({valid3, scale3, product})
  );
  logic signed [31:0] first, scaled;
  npu_round round (.product, .shift(scale3.shift), .out(first));

  // 4. in the factored modes the second multiplication and the late bias
  if (FACTORED) begin : g_factored
    logic signed [31:0] first4;
    npu_delay #(.BITS(1 + $bits(scale_t) + 32), .DEPTH(FIRST_DEPTH)) first_stage (
        .clk, .in({valid3, scale3, first}), .out({valid4, scale4, first4})
    );
    wire signed [63:0] second_exact = 64'(first4) * $signed(64'(scale4.second_multiplier));
    logic signed [63:0] second_product;
    logic signed [31:0] first5;
    npu_delay #(.BITS(1 + $bits(scale_t) + 32 + 64), .DEPTH(SECOND_DEPTH)) second_stage (
        .clk, .in({valid4, scale4, first4, second_exact}), .out({valid5, scale5, first5, second_product})
    );
    logic signed [31:0] second, biased, whole;
    npu_round #(.DOUBLE(0)) round_second (.product(second_product), .shift(scale5.second_shift), .out(second));
    wire signed [32:0] exact_biased = 33'(second) + 33'(scale5.late_bias);
    npu_narrow #(.IN_BITS(33), .OUT_BITS(32), .MODE(SATURATE)) add_bias (.in(exact_biased), .out(biased), .overflow());
    npu_round #(.DOUBLE(0)) round_fraction (.product(64'(biased)), .shift({2'b00, fraction_bits}), .out(whole));
    assign scaled = scale5.factored ? whole : first5;
  end else begin : g_plain
    assign {valid4, scale4} = {valid3, scale3};
    assign {valid5, scale5} = {valid4, scale4};
    assign scaled = first;
    wire unused = &fraction_bits;
  end

  // 5. output zero point, clamp
  wire signed [32:0] offset = 33'(scaled) + 33'(out_zero_point);
  logic signed [32:0] low, high;
  always_comb begin
    case (out_type)
      U4: {low, high} = {33'sd0, 33'sd15};
      I4: {low, high} = {-33'sd8, 33'sd7};
      U6: {low, high} = {33'sd0, 33'sd63};
      I6: {low, high} = {-33'sd32, 33'sd31};
      U8: {low, high} = {33'sd0, 33'sd255};
      I8: {low, high} = {-33'sd128, 33'sd127};
      U16: {low, high} = {33'sd0, 33'sd65535};
      I16: {low, high} = {-33'sd32768, 33'sd32767};
      default: {low, high} = {-33'sd2147483648, 33'sd2147483647};
    endcase
  end
  wire signed [32:0] clamped = offset < low ? low : offset > high ? high : offset;

  assign result_next = valid5;
  always_ff @(posedge clk) result <= clamped[31:0];
endmodule
